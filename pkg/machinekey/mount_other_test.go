//go:build !linux

package machinekey

import "errors"

func mountTmpfs(string) error { return errors.ErrUnsupported }
