//! The HTTP server inside `alluvium run`: metrics that say what happened, the status, SQL; and what it
//! refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use alluvium_testkit::{Alluvium, PgCluster};
use serde_json::{Value, json};

use crate::setup::{PATIENCE, Setup, terminate};

/// The metrics as the documentation lists them, which `cargo xtask check` holds to the code.
const DOCUMENTED: &str = include_str!("../../../../docs/reference/metrics.md");

pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// One request on a connection of its own; the answer's body put together from its chunks.
fn request(address: SocketAddr, head: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, rest) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    let body = if head.contains("transfer-encoding: chunked") {
        unchunked(rest)
    } else {
        rest.to_owned()
    };
    Answer {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head,
        body,
    }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (length, after) = rest.split_once("\r\n").expect("an answer broke off");
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return body;
        }
        let (chunk, after) = after.split_at(length);
        body.push_str(chunk);
        rest = after.strip_prefix("\r\n").unwrap();
    }
}

pub(crate) fn get(address: SocketAddr, path: &str) -> Answer {
    request(
        address,
        &format!("GET {path} HTTP/1.1\r\nhost: {address}"),
        "",
    )
}

pub(crate) fn post_sql(address: SocketAddr, content_type: &str, body: &str) -> Answer {
    let head =
        format!("POST /api/v1/sql HTTP/1.1\r\nhost: {address}\r\ncontent-type: {content_type}");
    request(address, &head, body)
}

/// Samples by name and labels, as written: `name{label="value"}`.
type Samples = BTreeMap<String, f64>;

/// Reads the text strictly: every line is HELP, TYPE or a sample of the family just described.
fn parse(text: &str) -> (BTreeSet<String>, Samples) {
    assert!(text.ends_with('\n'));
    let (mut families, mut samples) = (BTreeSet::new(), Samples::new());
    let (mut family, mut typed) = (String::new(), false);
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(
                !help.is_empty() && families.insert(name.to_owned()),
                "{line}"
            );
            (family, typed) = (name.to_owned(), false);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(name == family && !typed, "{line}");
            assert!(kind == "gauge" || kind == "counter", "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            typed = true;
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            assert!(typed && name == family, "{line}");
            if let Some(labels) = series.strip_prefix(name).filter(|rest| !rest.is_empty()) {
                check_labels(labels);
            }
            let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(samples.insert(series.to_owned(), value).is_none(), "{line}");
        }
    }
    (families, samples)
}

/// `{name="value",name="value"}`, with nothing unescaped in a value.
fn check_labels(labels: &str) {
    let inner = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}'));
    let mut rest = inner.unwrap_or_else(|| panic!("{labels}"));
    loop {
        let (name, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{labels}"));
        let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        assert!(is_name && !name.is_empty(), "{labels}");
        let mut letters = value.char_indices();
        let end = loop {
            match letters.next().unwrap_or_else(|| panic!("{labels}")) {
                (_, '\\') => {
                    let (_, escaped) = letters.next().unwrap();
                    assert!(['\\', '"', 'n'].contains(&escaped), "{labels}");
                }
                (at, '"') => break at,
                _ => {}
            }
        };
        match value.split_at(end + 1).1.strip_prefix(',') {
            Some(more) => rest = more,
            None => {
                assert_eq!(value.len(), end + 1, "{labels}");
                return;
            }
        }
    }
}

pub(crate) fn scrape(address: SocketAddr) -> (BTreeSet<String>, Samples) {
    let answer = get(address, "/metrics");
    assert_eq!(answer.status, 200);
    assert!(
        answer
            .head
            .contains("content-type: text/plain; version=0.0.4"),
        "{}",
        answer.head
    );
    parse(&answer.body)
}

fn documented() -> BTreeMap<String, bool> {
    let rows = DOCUMENTED
        .lines()
        .filter_map(|line| line.strip_prefix("| `alluvium_"));
    rows.map(|row| {
        let mut cells = row.split('|');
        let name = format!(
            "alluvium_{}",
            cells.next().unwrap().trim().trim_matches('`')
        );
        (name, cells.nth(2).unwrap().contains("`table`"))
    })
    .collect()
}

fn serving(sql: &str) -> Setup {
    let pg = PgCluster::start(None, &[]).unwrap();
    Setup::on(
        pg,
        sql,
        "\"public.*\"",
        "[serve.http]\nlisten = \"127.0.0.1:0\"\n",
    )
}

/// Where the running program says that it listens.
pub(crate) fn address_of(setup: &Setup, running: &Alluvium) -> SocketAddr {
    let file = setup.dir.path().join(".alluvium/status.json");
    let address = || -> Option<SocketAddr> {
        let status: Value = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
        status["http"]["address"].as_str()?.parse().ok()
    };
    setup.wait(running, "the address is told", || address().is_some());
    address().unwrap()
}

const TWO_TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
     INSERT INTO t SELECT g, 'v' FROM generate_series(1, 100) g;
     CREATE TABLE \"odd\"\"\\ name\" (id int PRIMARY KEY)";

#[test]
fn metrics_say_what_happened() {
    let setup = serving(TWO_TABLES);
    let running = setup.spawn_run();
    let address = address_of(&setup, &running);
    let odd = "public.odd\\\"\\\\ name";
    let value = |name: &str| scrape(address).1.get(name).copied();
    let of_t = |name: &str| value(&format!("{name}{{table=\"public.t\"}}"));
    let live = |table: &str| {
        value(&format!(
            "alluvium_table_phase{{table=\"{table}\",phase=\"live\"}}"
        )) == Some(1.0)
    };
    setup.wait(&running, "both are live", || live("public.t") && live(odd));
    assert_eq!(of_t("alluvium_table_copied_rows_total"), Some(100.0));
    assert_eq!(of_t("alluvium_table_changes_total"), Some(0.0));

    let pg = &setup.pg;
    pg.execute("INSERT INTO t SELECT g, 'w' FROM generate_series(101, 150) g")
        .unwrap();
    pg.execute("UPDATE t SET v = 'x' WHERE id <= 30").unwrap();
    pg.execute("DELETE FROM t WHERE id > 140").unwrap();
    pg.execute("INSERT INTO \"odd\"\"\\ name\" VALUES (1), (2)")
        .unwrap();
    setup.wait(&running, "the changes are counted", || {
        of_t("alluvium_table_changes_total") == Some(90.0)
            && value(&format!("alluvium_table_changes_total{{table=\"{odd}\"}}")) == Some(2.0)
    });
    // The stream's own counts are brought up to date once a second.
    setup.wait(&running, "the stream has counted them too", || {
        value("alluvium_stream_changes_total") == Some(92.0)
    });
    setup.wait(&running, "there is no lag", || {
        let (_, samples) = scrape(address);
        [
            "alluvium_source_lag_bytes",
            "alluvium_source_lag_seconds",
            "alluvium_freshness_seconds",
        ]
        .iter()
        .all(|name| samples.get(*name) == Some(&0.0))
    });

    let (families, samples) = scrape(address);
    let documented = documented();
    let names: BTreeSet<String> = documented.keys().cloned().collect();
    assert_eq!(families, names, "what is served is what is documented");
    for (name, is_of_table) in &documented {
        for table in ["public.t", odd] {
            let label = if *is_of_table {
                format!("{{table=\"{table}\"")
            } else {
                String::new()
            };
            let start = format!("{name}{label}");
            let found = samples.keys().any(|series| {
                series.strip_prefix(&start).is_some_and(|rest| {
                    is_of_table
                        .then_some(rest.starts_with([',', '}']))
                        .unwrap_or(true)
                })
            });
            assert!(found, "{start} has no sample");
        }
    }
    let sample = |name: &str| samples[name];
    let of_t = |name: &str| samples[&format!("{name}{{table=\"public.t\"}}")];
    assert_eq!(of_t("alluvium_table_rows"), 140.0);
    assert_eq!(setup.sql("SELECT count(*) AS n FROM t")[0]["n"], 140);
    assert_eq!(sample("alluvium_stream_transactions_total"), 4.0);
    assert!(sample("alluvium_stream_received_bytes_total") > 92.0 * 9.0);
    assert_eq!(sample("alluvium_stream_open_cuts"), 0.0);
    assert_eq!(sample("alluvium_memory_bytes{part=\"handed_over\"}"), 0.0);
    let index = of_t("alluvium_table_index_bytes");
    assert!(index > 0.0 && sample("alluvium_memory_bytes{part=\"index\"}") >= index);
    assert_eq!(sample("alluvium_memory_budget_bytes"), f64::from(1 << 30));
    assert!(sample("alluvium_memory_resident_bytes") > f64::from(1 << 20));
    let commits = of_t("alluvium_table_commits_total");
    assert!((1.0..=3.0).contains(&commits), "{commits}");
    assert!(
        of_t("alluvium_table_commit_seconds_total") >= of_t("alluvium_table_last_commit_seconds")
    );
    assert!(
        of_t("alluvium_table_silver_position_bytes")
            <= sample("alluvium_source_server_position_bytes")
    );
    terminate(running);
    assert!(TcpStream::connect(address).is_err(), "it ends with the run");
    assert_eq!(setup.status("public.t")["changes"], 90);
    setup.assert_equal();
}

#[test]
fn status_health_and_sql_answer_as_the_commands_do() {
    let setup = serving(TWO_TABLES);
    let running = setup.spawn_run();
    let address = address_of(&setup, &running);
    setup.wait(&running, "it is live", || {
        let tables = get(address, "/api/v1/status").json()["tables"].clone();
        let tables = tables.as_array().cloned().unwrap_or_default();
        tables.len() == 2 && tables.iter().all(|table| table["phase"] == "live")
    });
    setup
        .pg
        .execute("INSERT INTO t VALUES (200, 'now')")
        .unwrap();
    let shown = || {
        let finished = setup
            .alluvium(&["status", "--output", "json"])
            .success()
            .unwrap();
        still(serde_json::from_str(&finished.stdout).unwrap())
    };
    let served = || still(get(address, "/api/v1/status").json());
    setup.wait(&running, "both say the same", || {
        let (shown, served) = (shown(), served());
        shown == served
            && served["clocks"]["source_lag_bytes"] == 0
            && served["stream"]["changes"] == 1
    });
    assert_eq!(served()["tables"][1]["table"], "public.t");
    assert_eq!(served()["tables"][1]["silver_rows"], 101);
    let text = setup.alluvium(&["status"]).success().unwrap().stdout;
    for word in [
        "source lag",
        "commit lag",
        "freshness",
        "rate",
        "memory",
        "serving",
        "public.t",
    ] {
        assert!(text.contains(word), "{word} is missing in:\n{text}");
    }

    let health = get(address, "/healthz");
    assert_eq!(health.status, 200);
    let wanted =
        json!({"status": "ok", "connected": true, "tables": 2, "stopped": [], "error": null});
    assert_eq!(health.json(), wanted);

    for query in [
        "SELECT id, v, 0.10 AS d FROM t ORDER BY id",
        "SELECT count(*) AS n FROM bronze.t",
        "SELECT id FROM t WHERE id < 0",
        "SET datafusion.explain.logical_plan_only = true; SELECT 1 AS one",
    ] {
        let printed = setup
            .alluvium(&["sql", query, "--output", "json"])
            .success()
            .unwrap();
        let as_json = post_sql(
            address,
            "application/json",
            &json!({"sql": query}).to_string(),
        );
        assert_eq!(
            (as_json.status, &as_json.body),
            (200, &printed.stdout),
            "{query}"
        );
        let as_text = post_sql(address, "text/plain; charset=utf-8", query);
        assert_eq!(
            (as_text.status, &as_text.body),
            (200, &printed.stdout),
            "{query}"
        );
    }
    // Larger than one piece of an answer.
    let many = "SELECT a.id, b.id AS other, a.v FROM t a CROSS JOIN t b ORDER BY 1, 2";
    let answer = post_sql(address, "text/plain", many);
    assert!(answer.body.len() > 300_000, "{}", answer.body.len());
    let printed = setup
        .alluvium(&["sql", many, "--output", "json"])
        .success()
        .unwrap();
    assert!(answer.body == printed.stdout);
    terminate(running);
}

#[test]
fn health_tells_of_stopped_tables_and_of_a_server_that_is_gone() {
    let mut setup = serving(TWO_TABLES);
    let running = setup.spawn_run();
    let address = address_of(&setup, &running);
    let health = || {
        let answer = get(address, "/healthz");
        (answer.status, answer.json())
    };
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    setup
        .pg
        .execute("ALTER TABLE t ALTER COLUMN v TYPE int USING 1; INSERT INTO t VALUES (300, 1)")
        .unwrap();
    setup.wait(&running, "the table is stopped", || {
        health().1["status"] == "degraded"
    });
    let (status, told) = health();
    assert_eq!((status, &told["stopped"]), (200, &json!(["public.t"])));
    // Its readers see the past, more of it with every moment; those of the other do not.
    let stopped = "alluvium_table_freshness_seconds{table=\"public.t\"}";
    let age = scrape(address).1[stopped];
    setup.wait(&running, "it is older", || {
        let (_, samples) = scrape(address);
        samples[stopped] > age && samples["alluvium_freshness_seconds"] >= samples[stopped]
    });
    let phase = "alluvium_table_phase{table=\"public.t\",phase=\"stopped\"}";
    assert_eq!(scrape(address).1[phase], 1.0);
    // On a busy machine the other may be behind for a moment too.
    setup.wait(&running, "it is the oldest", || {
        get(address, "/api/v1/status").json()["clocks"]["freshness_table"] == "public.t"
    });

    setup.pg.stop_fast().unwrap();
    setup.wait(&running, "it is disconnected", || health().0 == 503);
    assert_eq!(health().1["status"], "disconnected");
    assert!(
        health().1["error"]["code"]
            .as_str()
            .unwrap()
            .starts_with("AL-PG-")
    );
    let (_, samples) = scrape(address);
    assert_eq!(samples["alluvium_pipeline_connected"], 0.0);
    let lag = samples["alluvium_source_lag_seconds"];
    setup.wait(&running, "the lag grows", || {
        scrape(address).1["alluvium_source_lag_seconds"] > lag
    });
    let told = setup.alluvium(&["status"]).stdout;
    assert!(told.contains("not connected to the source"), "{told}");
    setup.pg.start_again().unwrap();
    setup.wait(&running, "it is connected again", || health().0 == 200);
    let ended = running.stop(PATIENCE).unwrap();
    assert_eq!(ended.code(), Some(3), "{}", ended.stderr);
}

/// Without what changes from one moment to the next.
fn still(mut report: Value) -> Value {
    for name in [
        "updated_micros",
        "server_asked_micros",
        "complete_until_micros",
        "rates",
        "memory",
    ] {
        report.as_object_mut().unwrap().remove(name);
    }
    report
}

#[test]
fn what_cannot_be_answered_is_an_error_with_a_code() {
    let setup = serving("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let running = setup.spawn_run();
    let address = address_of(&setup, &running);
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    let failed = |answer: &Answer, status: u16, code: &str, hint: &str| {
        assert_eq!(answer.status, status, "{}", answer.body);
        let error = answer.json();
        assert_eq!(error["code"], code, "{error}");
        assert!(
            error["message"].as_str().is_some_and(|m| !m.is_empty()),
            "{error}"
        );
        assert!(error["hint"].as_str().unwrap().contains(hint), "{error}");
        assert_eq!(error.as_object().unwrap().len(), 4, "{error}");
    };
    let sql = |query: &str| post_sql(address, "text/plain", query);
    failed(&sql("SELEC 1"), 400, "AL-SQL-002", "syntax");
    failed(
        &sql("SELECT * FROM tt"),
        400,
        "AL-SQL-003",
        "did you mean t?",
    );
    failed(&sql("DELETE FROM t"), 400, "AL-SQL-005", "its source");
    failed(&sql("SELECT 1; SELECT 2"), 400, "AL-SQL-001", "one by one");
    failed(
        &sql("SELECT CAST('x' AS int) + id FROM t"),
        400,
        "AL-SQL-001",
        "",
    );
    failed(&sql(" "), 400, "AL-SQL-001", "application/json");
    let form = post_sql(address, "application/x-www-form-urlencoded", "SELECT 1");
    failed(&form, 415, "AL-HTTP-002", "text/plain");
    failed(
        &post_sql(address, "application/json", "{}"),
        400,
        "AL-HTTP-002",
        "sql",
    );
    failed(
        &sql(&"x".repeat((1 << 20) + 1)),
        413,
        "AL-HTTP-002",
        "1 MiB",
    );
    failed(&get(address, "/nowhere"), 404, "AL-HTTP-002", "/metrics");
    failed(&get(address, "/api/v1/sql"), 405, "AL-HTTP-002", "POST");
    // A web page: of another origin, or by a name made to point here.
    let page =
        format!("GET /api/v1/status HTTP/1.1\r\nhost: {address}\r\norigin: https://evil.example");
    failed(&request(address, &page, ""), 403, "AL-HTTP-002", "");
    let rebound = "GET /api/v1/status HTTP/1.1\r\nhost: evil.example";
    failed(
        &request(address, rebound, ""),
        403,
        "AL-HTTP-002",
        "address",
    );
    // A second run is told of the lake, not of the port.
    let config = setup.dir.path().join("alluvium.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("127.0.0.1:0", &address.to_string())).unwrap();
    let second = setup.alluvium(&["run"]);
    assert!(
        second.stderr.contains("error[AL-LAKE-005]"),
        "{}",
        second.stderr
    );
    terminate(running);
}

#[test]
fn a_port_in_use_is_told_before_anything_is_done() {
    let setup = serving("CREATE TABLE t (id int PRIMARY KEY)");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    setup.configure(
        "\"public.*\"",
        &format!("[serve.http]\nlisten = \"{address}\"\n"),
    );
    let ended = setup.alluvium(&["run"]);
    assert_eq!(ended.code(), Some(1), "{}", ended.stderr);
    for part in [
        "error[AL-HTTP-001]",
        &address,
        "hint: another program has this port",
    ] {
        assert!(
            ended.stderr.contains(part),
            "{part} is missing in:\n{}",
            ended.stderr
        );
    }
    assert!(!setup.lake().exists(), "something was done already");
    drop(taken);
    setup.configure("\"public.*\"", "[serve.http]\nlisten = \"0.0.0.0:0\"\n");
    let ended = setup.alluvium(&["run"]);
    assert!(
        ended.stderr.contains("error[AL-CONFIG-004]"),
        "{}",
        ended.stderr
    );
    assert!(
        ended.stderr.contains("no authentication"),
        "{}",
        ended.stderr
    );
    setup.configure("\"public.*\"", "");
    setup.catch_up();
    assert_eq!(setup.status("public.t")["phase"], "live");
}

/// A query that nobody waits for any more ends, and gives its place back.
#[test]
fn a_query_ends_with_its_client() {
    let setup = serving(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 3000)",
    );
    setup.configure(
        "\"public.*\"",
        "[serve]\nsql_concurrency = 1\n[serve.http]\nlisten = \"127.0.0.1:0\"\n",
    );
    let running = setup.spawn_run();
    let address = address_of(&setup, &running);
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["silver_rows"] == 3000
    });
    let at_work = || scrape(address).1["alluvium_sql_running_queries"];
    // 27 thousand million rows: without an end to it, it would run for minutes.
    let endless = "SELECT a.id FROM t a CROSS JOIN t b CROSS JOIN t c";
    let mut client = TcpStream::connect(address).unwrap();
    let length = endless.len();
    write!(client, "POST /api/v1/sql HTTP/1.1\r\nhost: {address}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{endless}").unwrap();
    let mut first = [0_u8; 4096];
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(client.read(&mut first).unwrap() > 0);
    assert_eq!(at_work(), 1.0);
    drop(client);
    setup.wait(&running, "its place is free again", || at_work() == 0.0);
    assert_eq!(
        post_sql(address, "text/plain", "SELECT 1 AS one").status,
        200
    );
    // The run ends in order with a query at work.
    let mut client = TcpStream::connect(address).unwrap();
    write!(client, "POST /api/v1/sql HTTP/1.1\r\nhost: {address}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{endless}").unwrap();
    setup.wait(&running, "it is at work", || at_work() == 1.0);
    std::thread::sleep(Duration::from_millis(50));
    terminate(running);
}
