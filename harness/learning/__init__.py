"""What is learned from datasets: predictors, prompts, recoveries and schedules."""
