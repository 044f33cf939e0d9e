"""Engine: schedules, runs and samples requests on one device. Imports no HTTP."""
