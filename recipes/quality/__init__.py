"""What a model makes of text: every named evaluation of a recipe, asked of a model of any form."""
