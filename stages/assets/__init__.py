"""The parts the study runs on: pictures, models and questions that arrive with pip, and a table of facts."""
