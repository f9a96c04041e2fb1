"""Examples to learn and to be measured from: every dataset yields `EditSample`s.

`sources.open_source` tells what a folder is (`triplets`, `rovi`, `davis`, or scenes drawn by `procedural`);
`mixture.EditClips` draws samples from several of them. A recorded clip is read where it lies, a window at
a time (`recordings`, `footage`, `probe`, `window`); one with masks alone becomes a pair by `synthesis`. What
is wrong with one goes to `faults`, or is told beforehand by `check`; `split` holds clips out. `latents`
keeps what is encoded.
"""
