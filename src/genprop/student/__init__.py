"""The student: cloned from the teacher, given a LoRA, loaded from its bundle."""
