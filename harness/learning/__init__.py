"""What is learned from datasets: predictors, prompts, recoveries, schedules and budgets."""
