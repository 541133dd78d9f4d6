//! Sessions: who is let in, how, and with which settings.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use alluvium_change::code;
use alluvium_source_postgres::connect::connect;
use alluvium_source_postgres::replication::ReplicationConnection;
use alluvium_testkit::PgCluster;

use crate::{client, database, options};

#[tokio::test]
async fn refusals_have_their_codes() {
    let cluster = PgCluster::builder().password("s3cret").start().unwrap();
    let good = format!("{}?connect_timeout=5", cluster.url("postgres"));
    client(&options(&good)).await;
    ReplicationConnection::connect(&options(&good))
        .await
        .unwrap();

    let wrong = good.replace("s3cret", "wr0ng");
    let missing = good.replace(":s3cret", "");
    let unknown_role = good.replace("postgres:s3cret", "nobody_here:s3cret");
    let no_database = good.replace("/postgres?", "/not_there?");
    let port = cluster.port().to_string();
    let nobody_listens = good.replace(&port, "1");
    let no_host = good.replace("127.0.0.1", "host.invalid");
    for (url, code) in [
        (&wrong, &code::PG_AUTH),
        (&missing, &code::PG_AUTH),
        (&unknown_role, &code::PG_AUTH),
        (&no_database, &code::PG_DATABASE),
        (&nobody_listens, &code::PG_CONNECT),
        (&no_host, &code::PG_CONNECT),
    ] {
        let options = options(url);
        let plain = connect(&options).await.unwrap_err();
        assert!(plain.is(code), "{url}: {plain:?}");
        let replication = ReplicationConnection::connect(&options).await.unwrap_err();
        assert!(replication.is(code), "{url}: {replication:?}");
        for error in [plain, replication] {
            assert!(!format!("{error:?}").contains("wr0ng"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_role_without_replication_may_not_stream() {
    let admin = database("no_replication").await;
    client(&admin)
        .await
        .batch_execute("CREATE ROLE reader_only LOGIN")
        .await
        .unwrap();
    let mut reader = admin;
    reader.user = "reader_only".into();
    client(&reader).await;
    let error = ReplicationConnection::connect(&reader).await.unwrap_err();
    assert!(error.is(&code::PG_RIGHTS), "{error:?}");
}

#[tokio::test]
async fn every_password_method() {
    let cluster = PgCluster::builder().password("s3cret").start().unwrap();
    cluster
        .execute(
            "SET password_encryption = 'md5'; CREATE ROLE m REPLICATION LOGIN PASSWORD 'pässword'",
        )
        .unwrap();
    for method in ["md5", "password"] {
        fs::write(
            cluster.dir().join("data/pg_hba.conf"),
            format!("host all postgres all scram-sha-256\nhost all m all {method}\n"),
        )
        .unwrap();
        cluster.execute("SELECT pg_reload_conf()").unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let url = cluster.url("postgres");
        let options = options(&url.replace("postgres:s3cret", "m:p%C3%A4ssword"));
        client(&options).await;
        ReplicationConnection::connect(&options).await.unwrap();
    }
}

#[tokio::test]
async fn settings_of_the_database_do_not_win() {
    let options = database("settings").await;
    let client = client(&options).await;
    for (name, value) in [
        ("DateStyle", "ISO, YMD"),
        ("IntervalStyle", "iso_8601"),
        ("TimeZone", "UTC"),
        ("extra_float_digits", "3"),
        ("bytea_output", "hex"),
        ("statement_timeout", "0"),
    ] {
        let row = client
            .query_one(&format!("SHOW {name}"), &[])
            .await
            .unwrap();
        assert_eq!(row.get::<_, &str>(0), value, "{name}");
    }
    let row = client.query_one("SHOW search_path", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "\"\"");
}

#[tokio::test]
async fn unix_sockets() {
    let cluster = crate::cluster();
    let directory = cluster.dir().display();
    let url = format!(
        "postgres://postgres@/postgres?host={directory}&port={}",
        cluster.port()
    );
    client(&options(&url)).await;
    ReplicationConnection::connect(&options(&url))
        .await
        .unwrap();
}

#[tokio::test]
async fn tls_by_sslmode() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
    let mut cluster = PgCluster::start(None, &[]).unwrap();
    let data = cluster.dir().join("data");
    let owner = fs::metadata(&data).unwrap();
    let install = |certificate: &str, key: &str| {
        use std::os::unix::fs::MetadataExt as _;
        for (from, to) in [(certificate, "server.crt"), (key, "server.key")] {
            let to = data.join(to);
            fs::copy(fixtures.join(from), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
            chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
    };
    let url = |host: &str, mode: &str, root: Option<&str>| {
        let base = cluster_url(host, cluster.port(), mode);
        root.map_or(base.clone(), |root| {
            format!("{base}&sslrootcert={}", fixtures.join(root).display())
        })
    };
    let require = url("127.0.0.1", "require", None);
    let prefer = url("127.0.0.1", "prefer", None);
    let disable = url("127.0.0.1", "disable", None);
    let cases = |root: &str, other: &str| {
        [
            (url("127.0.0.1", "require", None), true),
            (url("127.0.0.1", "require", Some(root)), true),
            (url("127.0.0.1", "require", Some(other)), false),
            (url("127.0.0.1", "verify-ca", Some(root)), true),
            (url("127.0.0.1", "verify-ca", Some(other)), false),
            // The certificate names localhost only.
            (url("127.0.0.1", "verify-full", Some(root)), false),
            (url("localhost", "verify-full", Some(root)), true),
            (url("localhost", "verify-full", Some(other)), false),
        ]
    };
    let rounds = [
        ("server.crt", "server.key", cases("ca.crt", "self.crt")),
        ("self.crt", "self.key", cases("self.crt", "ca.crt")),
    ];

    // Without ssl at the server.
    assert!(
        connect(&options(&require))
            .await
            .unwrap_err()
            .is(&code::PG_TLS)
    );
    assert!(!is_encrypted(&prefer).await);

    for (certificate, key, cases) in rounds {
        install(certificate, key);
        cluster.set_conf("ssl", "on");
        cluster.stop_fast().unwrap();
        cluster.start_again().unwrap();
        for (url, works) in cases {
            if works {
                assert!(is_encrypted(&url).await, "{url}");
                ReplicationConnection::connect(&options(&url))
                    .await
                    .unwrap();
            } else {
                let error = connect(&options(&url)).await.unwrap_err();
                assert!(error.is(&code::PG_TLS), "{url}: {error:?}");
                let error = ReplicationConnection::connect(&options(&url))
                    .await
                    .unwrap_err();
                assert!(error.is(&code::PG_TLS), "{url}: {error:?}");
            }
        }
        assert!(is_encrypted(&prefer).await);
        assert!(!is_encrypted(&disable).await);
    }

    // Where the rules take only encrypted or only clear sessions, both lenient modes find the way.
    let allow = url_mode(&prefer, "allow");
    let admin = client(&options(&prefer)).await;
    for (rule, encrypted) in [("hostssl", true), ("hostnossl", false)] {
        let rules = format!("local all all trust\n{rule} all all all trust\n");
        fs::write(data.join("pg_hba.conf"), rules).unwrap();
        admin
            .batch_execute("SELECT pg_reload_conf()")
            .await
            .unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        assert_eq!(is_encrypted(&allow).await, encrypted, "{rule}");
        assert_eq!(is_encrypted(&prefer).await, encrypted, "{rule}");
    }
}

fn cluster_url(host: &str, port: u16, mode: &str) -> String {
    format!("postgres://postgres@{host}:{port}/postgres?sslmode={mode}")
}

fn url_mode(url: &str, mode: &str) -> String {
    let (base, _) = url.split_once("sslmode=").unwrap();
    format!("{base}sslmode={mode}")
}

async fn is_encrypted(url: &str) -> bool {
    let client = client(&options(url)).await;
    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    client.query_one(sql, &[]).await.unwrap().get(0)
}
