//! Segments as they are written, damaged, and forged.

use super::*;

fn run(number: u128, line: usize) -> EncodedRun {
    EncodedRun {
        number,
        summary: format!("summary {number}").into_bytes(),
        line: format!("{{\"n\":{number},\"x\":\"{}\"}}", "x".repeat(line)).into_bytes(),
    }
}

fn segment(runs: &[EncodedRun]) -> Bytes {
    let mut builder = SegmentBuilder::new().unwrap();
    for run in runs {
        builder.push(run.clone()).unwrap();
    }
    builder.finish().unwrap()
}

fn bytes_of(place: &Range<u64>) -> Range<usize> {
    let at = |offset: u64| usize::try_from(offset).unwrap();
    at(place.start)..at(place.end)
}

fn index(segment: &[u8]) -> Result<SegmentIndex, DamagedBytes> {
    let place = index_place(
        segment.len() as u64,
        &segment[segment.len().saturating_sub(40)..],
    )?;
    SegmentIndex::decode_packed(&segment[bytes_of(&place)])
}

#[test]
fn every_run_is_read_as_it_was_written_whole_and_alone() {
    // Lines that end at the frame's bound, one before and one after it, and far more than one.
    let sizes = [
        0,
        1,
        FRAME_BYTES - 14,
        FRAME_BYTES - 13,
        FRAME_BYTES,
        3 * FRAME_BYTES,
        5,
    ];
    let runs: Vec<_> = (1..)
        .zip(sizes)
        .map(|(number, size)| run(number, size))
        .collect();
    let segment = segment(&runs);
    assert_eq!(read_all(&segment).unwrap(), runs);
    let index = index(&segment).unwrap();
    for (entry, run) in index.runs.iter().zip(&runs) {
        let place = index.place(entry).unwrap();
        let frame = &segment[bytes_of(&place.frame)];
        assert_eq!(entry.number(), run.number);
        assert_eq!(place.decode(frame, whole).unwrap(), run.line);
        assert_eq!(place.decode(frame, some).unwrap(), &run.line[..3]);
        assert!(place.memory() >= (frame.len() + run.line.len()) as u64);
    }
}

#[test]
fn the_longest_line_is_read_behind_as_many_bytes_as_may_be_before_it() {
    let long = |number, bytes| EncodedRun {
        number,
        summary: Vec::new(),
        line: vec![b'x'; bytes],
    };
    // With the line break, one byte less than ends the frame.
    let before = long(1, FRAME_BYTES - 2);
    let segment_of = |bytes| segment(&[before.clone(), long(2, bytes)]);
    let longest = segment_of(MAX_LINE);
    let read = index(&longest).unwrap();
    let place = read.place(&read.runs[1]).unwrap();
    let frame = &longest[bytes_of(&place.frame)];
    assert!(place.decode(frame, whole).unwrap() == vec![b'x'; MAX_LINE]);
    assert_eq!(read_all(&longest).unwrap().len(), 2);
    let longer = index(&segment_of(MAX_LINE + 1)).unwrap();
    assert!(longer.place(&longer.runs[1]).is_err());
}

fn whole(line: &mut dyn BufRead) -> Vec<u8> {
    let mut read = Vec::new();
    line.read_to_end(&mut read).unwrap();
    read
}

fn some(line: &mut dyn BufRead) -> [u8; 3] {
    let mut read = [0; 3];
    line.read_exact(&mut read).unwrap();
    read
}

#[test]
fn a_frame_that_is_damaged_anywhere_gives_no_line_or_the_same() {
    let runs: Vec<_> = (0..3).map(|number| run(number, 50)).collect();
    let segment = segment(&runs);
    let index = index(&segment).unwrap();
    let place = index.place(&index.runs[1]).unwrap();
    let frame = &segment[bytes_of(&place.frame)];
    let decode = |frame: &[u8]| {
        place.decode(frame, |line| {
            let mut read = Vec::new();
            line.read_to_end(&mut read).map(|_| read)
        })
    };
    for at in 0..frame.len() {
        let mut bytes = frame.to_vec();
        bytes[at] ^= 0x55;
        if let Ok(read) = decode(&bytes) {
            assert_eq!(read.unwrap(), runs[1].line, "byte {at}");
        }
        assert!(decode(&frame[..at]).is_err(), "the first {at} bytes");
    }
    assert!(decode(&[frame, frame].concat()).is_err(), "twice as long");
}

/// A segment of one run whose index is another one.
fn forged(index: &[u8]) -> Vec<u8> {
    let honest = segment(&[run(1, 50)]);
    let place = index_place(honest.len() as u64, &honest).unwrap();
    let frames = bytes_of(&place).start - SKIPPABLE_HEADER;
    let mut bytes = honest[..frames].to_vec();
    let index = zstd::bulk::compress(index, LEVEL).unwrap();
    let length = u32::try_from(index.len() + TRAILER).unwrap();
    bytes.extend_from_slice(&SKIPPABLE.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&index);
    bytes.extend_from_slice(&(index.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&MAGIC);
    bytes
}

/// An index of so many runs, all of which have this frame and this line.
fn overlapping(runs: usize, frame: FrameEntry, length: u64) -> Vec<u8> {
    let entry = RunEntry {
        number: vec![7; 16],
        frame: 0,
        offset: 0,
        length,
        summary: Vec::new(),
    };
    let index = SegmentIndex {
        frames: vec![frame],
        runs: vec![entry; runs],
    };
    index.encode_to_vec()
}

#[test]
fn an_index_that_would_take_far_more_memory_than_it_has_bytes_is_refused() {
    let number = [[0x0a, 16].to_vec(), vec![7; 16]].concat();
    let honest = [[0x12, 18].to_vec(), number].concat();
    let no_number = "a run of its index has no number";
    let many = "its index has more entries than any";
    let large = "its index says that it is larger than any";
    let most = usize::try_from(MAX_INDEX).unwrap();
    for (bytes, refused) in [
        ([0x12, 0].repeat(most / 2), Some(no_number)),
        ([0x12, 0].repeat(most / 2 + 1), Some(large)),
        ([0x0a, 0].repeat(most / 2), Some(many)),
        ([&honest[..], &[0x0a, 0], &[0x0a, 0]].concat(), Some(many)),
        ([&honest[..], &[0x0a, 0]].concat(), None),
        (honest.repeat(MAX_RUNS), None),
        (honest.repeat(MAX_RUNS + 1), Some(many)),
        // A field that is not known is passed over.
        ([&honest[..], &[0x1a, 1, 0]].concat(), None),
    ] {
        let why = index(&forged(&bytes)).err().map(|why| why.to_string());
        assert_eq!(why.as_deref(), refused, "{} bytes", bytes.len());
    }
}

#[test]
fn lines_that_overlap_are_not_read_all_at_once() {
    let honest = segment(&[run(1, 50)]);
    let index = index(&honest).unwrap();
    let (frame, length) = (index.frames[0], index.runs[0].length);
    assert_eq!(
        read_all(&forged(&overlapping(1, frame, length)))
            .unwrap()
            .len(),
        1
    );
    for runs in [2, 100_000] {
        let refused = read_all(&forged(&overlapping(runs, frame, length))).unwrap_err();
        assert_eq!(refused.to_string(), "its lines are longer than its frames");
    }
}

#[test]
fn other_tools_read_the_lines() {
    let runs: Vec<_> = (0..5).map(|number| run(number, 100_000)).collect();
    let read = zstd::stream::decode_all(&*segment(&runs)).unwrap();
    let lines: Vec<_> = runs.iter().map(|run| run.line.clone()).collect();
    assert_eq!(read, [lines.join(&b'\n'), b"\n".to_vec()].concat());
}

#[test]
fn a_segment_that_is_damaged_anywhere_is_found_to_be_or_reads_the_same() {
    let runs: Vec<_> = (0..3).map(|number| run(number, 50)).collect();
    let whole = segment(&runs);
    for at in 0..whole.len() {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 0x55;
        if let Ok(read) = read_all(&bytes) {
            assert_eq!(read, runs, "byte {at}");
        }
        assert!(read_all(&whole[..at]).is_err(), "the first {at} bytes");
    }
}
