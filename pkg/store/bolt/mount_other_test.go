//go:build !linux

package bolt

import "errors"

func mountTmpfs(string, int) error { return errors.ErrUnsupported }
