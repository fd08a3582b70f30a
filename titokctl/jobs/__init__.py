"""One typed function per command. A job returns a result and prints nothing."""
