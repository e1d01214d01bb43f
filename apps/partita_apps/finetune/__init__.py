"""`partita finetune`: what a person gives and sees of a training run. The mathematics is the runtime's."""
