//! A replication reader that throws everything away: what a slot can give at most.
//!
//! Shares no code with the product, which it is a measure for. One connection, blocking, trust
//! authentication only (benchmarks run on private servers).
//! Invariant: it stops at the first transaction or keepalive at or after the given end.

use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Large enough for all that the sockets' buffers hold.
const BUFFER_BYTES: usize = 1 << 20;
/// A read of less than this was short: more is gathered before the next.
const SHORT_READ_BYTES: usize = 128 << 10;
const NAP: Duration = Duration::from_millis(1);
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
const PROTOCOL_VERSION: i32 = 196_608;
const XLOG_HEADER_BYTES: usize = 25;

/// Where to read, and how.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) slot: String,
    pub(crate) publication: String,
    /// `X/X`
    pub(crate) end_lsn: String,
    /// Nap after a short read, so that the next one finds full buffers.
    pub(crate) lazy: bool,
    pub(crate) binary: bool,
}

/// What came.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) messages: u64,
    pub(crate) changes: u64,
    pub(crate) transactions: u64,
    pub(crate) bytes: u64,
    pub(crate) reads: u64,
    pub(crate) seconds: f64,
    pub(crate) first_change_seconds: f64,
}

/// Reads the slot from where it stands to the end.
pub(crate) fn read_slot(options: &Options) -> Result<Report> {
    let end = parse_lsn(&options.end_lsn)?;
    let mut reader = Reader::connect(options)?;
    reader.start(options)?;
    let since = Instant::now();
    let mut told = since;
    let mut report = Report::default();
    loop {
        let count = reader.fill()?;
        report.reads += 1;
        report.bytes += count as u64;
        let progress = reader.take_messages(&mut report, since)?;
        if progress.reached >= end {
            report.seconds = since.elapsed().as_secs_f64();
            return Ok(report);
        }
        if progress.reply_wanted || told.elapsed() >= STATUS_INTERVAL {
            reader.send_status(progress.reached)?;
            told = Instant::now();
        }
        if options.lazy && count < SHORT_READ_BYTES {
            std::thread::sleep(NAP);
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    reached: u64,
    reply_wanted: bool,
}

struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    reached: u64,
}

impl Reader {
    fn connect(options: &Options) -> Result<Self> {
        let stream = TcpStream::connect((options.host.as_str(), options.port))?;
        stream.set_nodelay(true)?;
        let mut reader = Self {
            stream,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            reached: 0,
        };
        let mut body = PROTOCOL_VERSION.to_be_bytes().to_vec();
        for text in [
            "user",
            &options.user,
            "database",
            &options.database,
            "replication",
            "database",
            "application_name",
            "alluvium-bench",
        ] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        body.push(0);
        let length = i32::try_from(body.len() + 4).map_err(|_| odd("a long start"))?;
        reader.stream.write_all(&length.to_be_bytes())?;
        reader.stream.write_all(&body)?;
        reader.wait_for(b'Z')?;
        Ok(reader)
    }

    fn start(&mut self, options: &Options) -> Result<()> {
        let binary = if options.binary {
            ", \"binary\" 'true'"
        } else {
            ""
        };
        let command = format!(
            "START_REPLICATION SLOT \"{}\" LOGICAL 0/0 (\"proto_version\" '1', \
             \"publication_names\" '\"{}\"'{binary})\0",
            options.slot, options.publication
        );
        let length = i32::try_from(command.len() + 4).map_err(|_| odd("a long command"))?;
        self.stream.write_all(b"Q")?;
        self.stream.write_all(&length.to_be_bytes())?;
        self.stream.write_all(command.as_bytes())?;
        self.wait_for(b'W')
    }

    /// Reads what is there; at least something.
    fn fill(&mut self) -> Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let free = self.buffer.get_mut(self.end..).unwrap_or_default();
        let count = self.stream.read(free)?;
        if count == 0 {
            return Err(odd("the server ended the stream"));
        }
        self.end += count;
        Ok(count)
    }

    /// Tag and body range of the next whole message.
    fn next_message(&mut self) -> Result<Option<(u8, std::ops::Range<usize>)>> {
        let Some(header) = self
            .buffer
            .get(self.start..self.end)
            .filter(|b| b.len() >= 5)
        else {
            return Ok(None);
        };
        let (tag, length) = (header[0], be_u32(header, 1)? as usize);
        let whole = 1 + length;
        if header.len() < whole {
            return Ok(None);
        }
        let body = self.start + 5..self.start + whole;
        self.start += whole;
        Ok(Some((tag, body)))
    }

    fn wait_for(&mut self, wanted: u8) -> Result<()> {
        loop {
            while let Some((tag, body)) = self.next_message()? {
                if tag == b'E' {
                    let text = String::from_utf8_lossy(self.buffer.get(body).unwrap_or_default());
                    return Err(odd(&text.replace('\0', " ")));
                }
                if tag == wanted {
                    return Ok(());
                }
            }
            self.fill()?;
        }
    }

    fn take_messages(&mut self, report: &mut Report, since: Instant) -> Result<Progress> {
        let mut reply_wanted = false;
        while let Some((tag, body)) = self.next_message()? {
            let body = self.buffer.get(body).unwrap_or_default();
            if tag != b'd' {
                return Err(odd("another message than data"));
            }
            match body.first() {
                Some(b'k') => {
                    self.reached = self.reached.max(be_u64(body, 1)?);
                    reply_wanted |= body.last() == Some(&1);
                }
                Some(b'w') => {
                    report.messages += 1;
                    let plugin = body.get(XLOG_HEADER_BYTES..).unwrap_or_default();
                    match plugin.first() {
                        Some(b'I' | b'U' | b'D') => {
                            if report.changes == 0 {
                                report.first_change_seconds = since.elapsed().as_secs_f64();
                            }
                            report.changes += 1;
                        }
                        Some(b'C') => {
                            report.transactions += 1;
                            // Tag, flags, LSN of the commit, LSN after it.
                            self.reached = self.reached.max(be_u64(plugin, 10)?);
                        }
                        _ => {}
                    }
                }
                _ => return Err(odd("an unknown frame")),
            }
        }
        Ok(Progress {
            reached: self.reached,
            reply_wanted,
        })
    }

    /// Says what was received and nothing of what is durable: the slot stays where it is.
    fn send_status(&mut self, reached: u64) -> Result<()> {
        let mut message = vec![b'd'];
        message.extend_from_slice(&38_i32.to_be_bytes());
        message.push(b'r');
        message.extend_from_slice(&reached.to_be_bytes());
        message.extend_from_slice(&[0; 16]);
        message.extend_from_slice(&[0; 8]);
        message.push(0);
        self.stream.write_all(&message)
    }
}

fn be_u32(bytes: &[u8], at: usize) -> Result<u32> {
    let found = bytes.get(at..at + 4).and_then(|b| b.try_into().ok());
    found
        .map(u32::from_be_bytes)
        .ok_or_else(|| odd("too short"))
}

fn be_u64(bytes: &[u8], at: usize) -> Result<u64> {
    let found = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    found
        .map(u64::from_be_bytes)
        .ok_or_else(|| odd("too short"))
}

fn parse_lsn(text: &str) -> Result<u64> {
    let parsed = text.split_once('/').and_then(|(high, low)| {
        let high = u64::from_str_radix(high, 16).ok()?;
        Some((high << 32) | u64::from_str_radix(low, 16).ok()?)
    });
    parsed.ok_or_else(|| odd("an LSN is like 0/1A2B3C"))
}

fn odd(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}
