// Counts the words of stdin in a map and writes them by how often they come: iostreams, containers, closures.
#include <algorithm>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct Count {
    virtual ~Count() = default;
    virtual std::string text() const = 0;
};

struct Word final : Count {
    std::string word;
    int times;
    Word(std::string word, int times) : word(std::move(word)), times(times) {}
    std::string text() const override { return word + " " + std::to_string(times); }
};

int main() {
    std::map<std::string, int> times;
    for (std::istream_iterator<std::string> it(std::cin), end; it != end; ++it) times[*it]++;
    std::vector<std::pair<std::string, int>> order(times.begin(), times.end());
    std::stable_sort(order.begin(), order.end(), [](auto &a, auto &b) { return a.second > b.second; });
    std::vector<std::unique_ptr<Count>> counts;
    for (auto &[word, n] : order) counts.push_back(std::make_unique<Word>(word, n));
    for (auto &count : counts) std::cout << count->text() << '\n';
}
