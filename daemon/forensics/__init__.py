"""What really happened, and what is stuck: evidence from the files and the runtime, judged. Changes nothing."""
