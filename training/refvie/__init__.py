"""RefVIE's pipeline: from (source, instruction, target) triplets to quadruplets with a reference picture, at scale."""
