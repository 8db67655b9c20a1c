"""Understanding: redundancy measured, studies of many trainings, their statistics."""
