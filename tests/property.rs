//! Properties of what stands between the wire and the guest, over arbitrary input.

use proptest::prelude::*;
use ringfence::model::limits::{Ceilings, OutputMode, RequestedLimits, StackClass};
use ringfence::model::refusal::{list, printable, quote};
use ringfence::model::request::{Digest, GuestPath, Labels};
use std::time::Duration;

fn ceilings() -> Ceilings {
    Ceilings {
        default_memory_pages: 256,
        max_memory_pages: 4096,
        default_timeout: Duration::from_secs(30),
        max_timeout: Duration::from_secs(300),
        default_stack: 512 << 10,
        max_stack: 16 << 20,
        default_output: 1 << 20,
        max_output: 16 << 20,
        max_stream_output: None,
        default_fuel: 1000,
        max_fuel: Some(1_000_000),
        require_fuel: false,
    }
}

proptest! {
    #[test]
    fn a_grant_is_the_ask_or_a_refusal_never_something_in_between(
        memory_pages in proptest::option::of(1u32..10_000),
        fuel in proptest::option::of(1u64..2_000_000),
        stack in proptest::option::of(1u32..(32 << 20)),
        output in proptest::option::of(1u64..(32 << 20)),
        minimum in 0u64..8192,
    ) {
        let asked = RequestedLimits { memory_pages, fuel, stack, output, ..RequestedLimits::default() };
        match ceilings().grant(&asked, OutputMode::Captured) {
            Ok(limits) => {
                prop_assert!(memory_pages.is_none_or(|n| n <= 4096));
                prop_assert!(fuel.is_none_or(|n| n <= 1_000_000));
                prop_assert_eq!(limits.fuel, fuel);
                prop_assert_eq!(limits.output, Some(output.unwrap_or(1 << 20)));
                let want = stack.unwrap_or(512 << 10);
                prop_assert!(limits.stack.bytes() >= want);
                prop_assert_eq!(Some(limits.stack), StackClass::at_least(want));
                match limits.memory_pages(minimum) {
                    Ok(pages) => {
                        prop_assert!(u64::from(pages) >= minimum && pages <= 4096);
                        prop_assert!(memory_pages.is_none_or(|asked| asked == pages));
                    }
                    Err(_) => prop_assert!(u64::from(memory_pages.unwrap_or(4096)) < minimum),
                }
            }
            Err(_) => {
                let over = memory_pages.is_some_and(|n| n > 4096)
                    || fuel.is_some_and(|n| n > 1_000_000)
                    || stack.is_some_and(|n| !(64 << 10..=16 << 20).contains(&n))
                    || output.is_some_and(|n| n > 16 << 20);
                prop_assert!(over);
            }
        }
    }

    #[test]
    fn a_digest_reads_back_as_it_is_written(bytes: Vec<u8>) {
        let digest = Digest::of(&bytes);
        prop_assert_eq!(Digest::parse("d", &digest.to_string()).unwrap(), digest);
    }

    #[test]
    fn arbitrary_text_is_a_digest_or_a_refusal(text in ".*") {
        if let Ok(digest) = Digest::parse("d", &text) {
            prop_assert_eq!(digest.to_string(), text.to_ascii_lowercase());
        }
    }

    #[test]
    fn a_guest_path_never_climbs(text in "[/.a\\\\\u{0}-\u{ff}]{0,40}") {
        if let Ok(path) = GuestPath::parse("p", &text) {
            prop_assert!(path.as_str().starts_with('/'));
            prop_assert!(path.as_str().split('/').skip(1).all(|part| part != ".." && part != "."));
            prop_assert!(!path.as_str().contains('\0'));
            // Reading it again changes nothing.
            prop_assert_eq!(&GuestPath::parse("p", path.as_str()).unwrap(), &path);
        }
    }

    #[test]
    fn what_lies_beneath_is_put_together_again(root in "(/[a-c]{1,2}){0,3}", below in "([a-c]{1,2}/){0,3}[a-c]") {
        let root = if root.is_empty() { "/".to_owned() } else { root };
        let root = GuestPath::parse("p", &root).unwrap();
        let whole = GuestPath::parse("p", &format!("{}/{below}", root.as_str())).unwrap();
        prop_assert_eq!(whole.beneath(&root), Some(below.as_str()));
    }

    #[test]
    fn nothing_shown_holds_a_control_character_or_grows_without_bound(names in proptest::collection::vec(any::<String>(), 0..40)) {
        let shown = list(&names);
        prop_assert!(!shown.chars().any(char::is_control));
        prop_assert!(shown.len() < 600, "{}", shown.len());
        for name in &names {
            prop_assert!(!printable(name).chars().any(char::is_control));
            prop_assert!(quote(name).len() <= 123);
        }
    }

    #[test]
    fn labels_are_taken_whole_or_refused(labels in proptest::collection::btree_map(".{0,140}", ".{0,140}", 0..40)) {
        if let Ok(taken) = Labels::new("labels", labels.clone()) {
            let back: std::collections::BTreeMap<String, String> =
                taken.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            prop_assert_eq!(back, labels);
        }
    }
}
