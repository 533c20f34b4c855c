"""What a run is: settings, stages, committed directories, processes."""
