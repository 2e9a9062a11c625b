// Reads a JSON document from stdin, matches its texts with a regular expression, and writes what it counted as JSON.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"sort"
)

type document struct {
	Pattern string   `json:"pattern"`
	Texts   []string `json:"texts"`
}

type count struct {
	Match string `json:"match"`
	Times int    `json:"times"`
}

func main() {
	var given document
	if err := json.NewDecoder(os.Stdin).Decode(&given); err != nil {
		fmt.Fprintln(os.Stderr, "no document:", err)
		os.Exit(2)
	}
	pattern, err := regexp.Compile(given.Pattern)
	if err != nil {
		fmt.Fprintln(os.Stderr, "no pattern:", err)
		os.Exit(3)
	}
	times := map[string]int{}
	for _, text := range given.Texts {
		for _, match := range pattern.FindAllString(text, -1) {
			times[match]++
		}
	}
	counts := make([]count, 0, len(times))
	for match, n := range times {
		counts = append(counts, count{match, n})
	}
	sort.Slice(counts, func(i, j int) bool { return counts[i].Match < counts[j].Match })
	out, _ := json.Marshal(counts)
	fmt.Println(string(out))
}
