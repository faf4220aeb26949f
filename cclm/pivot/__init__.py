"""MPM: a multilingual language model as pivot, from pictures to texts and from texts to pictures."""
