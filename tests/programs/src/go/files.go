// Lists a folder, and reads a file of it whole.
package main

import (
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	folder := flag.String("folder", "", "what to list")
	name := flag.String("file", "", "what of it to read")
	flag.Parse()
	entries, err := os.ReadDir(*folder)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, entry := range entries {
		fmt.Println("entry", entry.Name(), entry.IsDir())
	}
	bytes, err := os.ReadFile(filepath.Join(*folder, *name))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("read %d %x\n", len(bytes), sha256.Sum256(bytes))
}
