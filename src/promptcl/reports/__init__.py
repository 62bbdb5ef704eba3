"""Make pages and figures: of runs from results.json alone, of a learner from its folder and labelled images."""
