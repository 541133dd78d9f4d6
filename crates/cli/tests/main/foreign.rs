//! Other programs write to the tables of a running pipeline: in the end the lake is the source, or the
//! table stops and says why.

use std::path::Path;
use std::time::Duration;

use alluvium_testkit::PgCluster;
use alluvium_testkit::check::write_as_another;

use crate::setup::{Setup, terminate};

const CREATE: &str = "CREATE TABLE t (id int PRIMARY KEY, v text);
     INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, 3000) g";

fn more(policy: &str) -> String {
    format!(
        "[commit]\nmin_interval_ms = 10\nmax_interval_ms = 10\n[maintain]\nforeign = \"{policy}\"\n\
         enabled = false\n"
    )
}

/// Changes rows in several commits.
fn change(setup: &Setup, n: u32) {
    for step in 0..4 {
        let at = n * 10 + step;
        let changes = format!(
            "UPDATE t SET v = 'n{at}' WHERE id % 50 = {at} % 50;
             DELETE FROM t WHERE id = {at};
             INSERT INTO t VALUES (10000 + {at}, 'new')"
        );
        setup.pg.execute(&changes).unwrap();
        std::thread::sleep(Duration::from_millis(60));
    }
}

fn others_write(policy: &str) {
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, CREATE, "\"public.*\"", &more(policy));
    let running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    let silver = setup.lake().join("silver/t");
    let bronze = setup.lake().join("bronze/t");
    let writes: [(&Path, &[&str]); 7] = [
        (&silver, &["optimize"]),
        (&silver, &["delete", "id % 3 = 0"]),
        (&silver, &["append"]),
        (&silver, &["restore", "3"]),
        (&bronze, &["append"]),
        (&bronze, &["optimize"]),
        (&silver, &["optimize"]),
    ];
    let mut taken = 0;
    for (n, (dir, what)) in (1..).zip(writes) {
        change(&setup, n);
        taken += usize::from(write_as_another(dir, what).unwrap());
        change(&setup, n + 100);
        let error = setup.status("public.t")["error"].clone();
        assert!(error.is_null(), "{what:?}: {error}");
    }
    assert!(taken >= 5, "only {taken} were done at all");
    let stderr = terminate(running);
    assert!(stderr.contains("another program"), "{stderr}");
    setup.assert_equal();
    // While nothing runs, too.
    assert!(write_as_another(&silver, &["append"]).unwrap());
    setup.catch_up();
    setup.assert_equal();
}

#[test]
fn what_others_write_is_followed_or_undone() {
    others_write("follow");
}

#[test]
fn what_others_write_is_undone() {
    others_write("repair");
}

#[test]
fn what_others_write_is_refused() {
    let pg = PgCluster::start(None, &[]).unwrap();
    let setup = Setup::on(pg, CREATE, "\"public.*\"", &more("refuse"));
    let mut running = setup.spawn_run();
    setup.wait(&running, "it is live", || {
        setup.status("public.t")["phase"] == "live"
    });
    change(&setup, 1);
    assert!(write_as_another(&setup.lake().join("silver/t"), &["append"]).unwrap());
    change(&setup, 2);
    setup.wait(&running, "it stops", || {
        setup.status("public.t")["phase"] == "stopped"
    });
    let error = setup.status("public.t")["error"].clone();
    assert_eq!(error["code"], "AL-LAKE-004", "{error}");
    running.terminate();
    let status = running.wait_timeout(Duration::from_secs(30)).unwrap();
    assert_eq!(status.and_then(|status| status.code()), Some(3));
    // The way out that the error names.
    let resync = setup.alluvium(&["resync", "public.t"]);
    resync.success().unwrap();
    setup.catch_up();
    setup.assert_equal();
}
