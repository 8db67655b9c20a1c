"""Images -> classes: training, evaluation, prediction."""
