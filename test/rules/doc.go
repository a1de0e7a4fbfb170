// Package rules holds the rules about this tree that can be tests: what each
// program may link, which way imports point, what no file may say. A rule that
// only people remember is forgotten.
package rules
