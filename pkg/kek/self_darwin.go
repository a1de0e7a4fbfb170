package kek

import "os"

func selfExecutable() (string, error) { return os.Executable() }
