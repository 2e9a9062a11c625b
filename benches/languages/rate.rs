//! Executions that come at a fixed rate, whether or not the last ones have ended.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::{CLIENTS, Measured, client, quantile, try_execute};

/// How long they come.
const TIME: Duration = Duration::from_secs(10);

/// How many executions of a language come in a second.
pub(crate) struct Rate {
    pub(crate) language: String,
    per_second: u32,
}

impl Rate {
    /// Reads `LANGUAGE=N`, such as `python=300`.
    pub(crate) fn parse(told: &str) -> Self {
        let (language, per_second) = told
            .split_once('=')
            .and_then(|(language, number)| Some((language, number.parse::<u32>().ok()?)))
            .filter(|(_, per_second)| *per_second > 0)
            .expect("--rate takes LANGUAGE=N, with a whole number above zero");
        Self {
            language: language.to_owned(),
            per_second,
        }
    }

    /// Asks for a program at this rate, and prints what came of it. Each call is timed from when
    /// it was due, so that a daemon that stands still is not asked less, and a client that is late
    /// counts as well.
    pub(crate) async fn measure(&self, addr: &str, program: &'static Measured) {
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(client(addr).await);
        }
        let calls = self.per_second * u32::try_from(TIME.as_secs()).unwrap();
        let interval = 1.0 / f64::from(self.per_second);
        let start = Instant::now();
        let mut all = JoinSet::new();
        for (call, client) in (0..calls).zip(clients.iter().cycle()) {
            let due = start + Duration::from_secs_f64(f64::from(call) * interval);
            tokio::time::sleep_until(due.into()).await;
            let mut client = client.clone();
            all.spawn(async move {
                let answer = try_execute(&mut client, program).await;
                answer.map(|_| due.elapsed())
            });
        }
        let (mut took, mut failed) = (Vec::new(), Vec::new());
        for answer in all.join_all().await {
            match answer {
                Ok(time) => took.push(time),
                Err(failure) => failed.push(failure),
            }
        }
        took.sort();
        assert!(!took.is_empty(), "nothing was served: {:?}", failed.first());
        println!(
            "{:<13} {:<25} {} a second for {} s: p50 {:.2} ms, p99 {:.2}, last {:.2}; served {:.2} %, {:.1} a second{}",
            program.language,
            program.name,
            self.per_second,
            TIME.as_secs(),
            quantile(&took, 50),
            quantile(&took, 99),
            quantile(&took, 100),
            100.0 * took.len() as f64 / f64::from(calls),
            took.len() as f64 / start.elapsed().as_secs_f64(),
            failed
                .first()
                .map_or_else(String::new, |it| format!("; {} failed: {it}", failed.len())),
        );
    }
}
