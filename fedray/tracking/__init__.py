"""Where runs are recorded: MLflow, one JSON file a run, or nowhere."""
