"""The edge to the machine: files that users name, and the errors that are theirs to mend."""
