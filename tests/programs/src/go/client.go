// Asks a server that it cannot reach: there are no sockets in preview 1, so it says so and ends by itself.
package main

import (
	"fmt"
	"net/http"
	"os"
	"time"
)

func main() {
	client := http.Client{Timeout: 2 * time.Second}
	answer, err := client.Get("http://127.0.0.1:9/")
	if err != nil {
		fmt.Println("no answer:", err)
		os.Exit(3)
	}
	fmt.Println("answered:", answer.Status)
}
