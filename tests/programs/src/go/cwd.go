// What Go makes of a working directory: prints os.Getwd and PWD, then each path that is asked for with what is in it.
// Built by `GOOS=wasip1 GOARCH=wasm go build`.
package main

import (
	"fmt"
	"os"
)

func main() {
	dir, err := os.Getwd()
	if err != nil {
		dir = "error"
	}
	pwd, set := os.LookupEnv("PWD")
	if !set {
		pwd = "(none)"
	}
	name := "(none)"
	if len(os.Args) > 0 {
		name = os.Args[0]
	}
	fmt.Printf("name=%s cwd=%s PWD=%s\n", name, dir, pwd)
	for i, path := range os.Args {
		if i == 0 {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			text = []byte("error")
		}
		fmt.Printf("%s: %s\n", path, text)
	}
}
