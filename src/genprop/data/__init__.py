"""Examples to learn and to be measured from: every dataset yields `EditSample`s.

`procedural` draws clips with known truth; `triplets` reads a folder of recorded ones.
"""
