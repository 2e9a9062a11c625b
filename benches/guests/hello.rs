//! What an ordinary short run does.

fn main() {
    println!("hello");
}
