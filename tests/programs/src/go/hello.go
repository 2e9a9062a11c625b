// The first program of anybody: a line out.
package main

import "fmt"

func main() {
	fmt.Println("hello from Go")
}
