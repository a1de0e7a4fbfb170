package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/opaquevault/ov/pkg/command"
)

// shells are the shells that commands can be completed in.
var shells = map[string]func(root *cobra.Command, w io.Writer) error{
	"bash": func(root *cobra.Command, w io.Writer) error { return root.GenBashCompletionV2(w, true) },
	"zsh":  (*cobra.Command).GenZshCompletion,
	"fish": func(root *cobra.Command, w io.Writer) error { return root.GenFishCompletion(w, true) },
}

func newCompletionCmd(*globals) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the file that makes a shell complete ov's commands",
		Long: `Print the file that makes a shell complete ov's commands and flags, and the names
that the running agent knows: of apps and envs and, while it is unlocked, of
secrets. It is asked at every Tab, as by "ov secret list"; nobody is asked for a
password, and no value is read. The file for bash needs the package
bash-completion.`,
		Example: `  ov completion bash >/etc/bash_completion.d/ov
  ov completion zsh >"${fpath[1]}/_ov"
  ov completion fish >~/.config/fish/completions/ov.fish`,
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args:      command.Args(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			// The file asks ov for the completions, so a tree with one noun will do.
			return shells[argv[0]](cmd.Root(), cmd.OutOrStdout())
		},
	}
}
