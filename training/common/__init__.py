"""What the stages share. Each stage is a script of the folder above, which Python then puts on its path."""
