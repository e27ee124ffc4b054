"""What everything else stands on: files, memory, processes, the evaluation mode; nothing here knows a layer."""
