//! Nested literals as a real server writes them.

use super::*;

#[test]
fn arrays_decode() {
    let texts = array_of(scalar("text"));
    let server = "{a,\"NULL\",\"null\",NULL,\"\",\"a b\",\"{\",\"}\",\"a,b\",\"\\\"\",\"\\\\\",\"\t\",é,\" x\"}";
    let items = [
        "a", "NULL", "null", "", "", "a b", "{", "}", "a,b", "\"", "\\", "\t", "é", " x",
    ];
    let mut items: Vec<Model> = items.into_iter().map(text).collect();
    items[3] = Model::Null;
    assert_eq!(decoded_one(&texts, server), list(items));

    let ints = array_of(scalar("int4"));
    let one_two = list(vec![number(1), number(2)]);
    assert_eq!(decoded_one(&ints, "{}"), list(vec![]));
    assert_eq!(decoded_one(&ints, "{1,2}"), one_two);
    // Lower bounds are dropped.
    assert_eq!(decoded_one(&ints, "[-1:0]={1,2}"), one_two);
    // Boxes are separated by semicolons.
    assert_eq!(
        decoded_one(&array_of(scalar("box")), "{(1,1),(0,0);(2,2),(1,1)}"),
        list(vec![text("(1,1),(0,0)"), text("(2,2),(1,1)")])
    );
    assert_eq!(
        decoded_one(&array_of(scalar("money")), "{\"-$1,234.56\",$0.00}"),
        list(vec![number(-123_456), number(0)])
    );
}

#[test]
fn arrays_of_more_dimensions_decode() {
    let options = ColumnOptions {
        dimensions: 2,
        ..ColumnOptions::default()
    };
    let plan = plan_column(&array_of(scalar("int4")), &options).unwrap();
    let row = |a, b| list(vec![number(a), number(b)]);
    assert_eq!(
        decoded(
            &plan,
            &["[2:3][0:1]={{1,2},{3,4}}", "{}", "{{5,6}}", "{{NULL,7}}"]
        ),
        [
            list(vec![row(1, 2), row(3, 4)]),
            list(vec![]),
            list(vec![row(5, 6)]),
            list(vec![list(vec![Model::Null, number(7)])]),
        ]
    );
    // An array of a domain over an array: the inner ones are quoted.
    assert_eq!(
        decoded_one(
            &array_of(array_of(scalar("int4"))),
            "{\"{1,2}\",NULL,\"{}\"}"
        ),
        list(vec![row(1, 2), Model::Null, list(vec![])])
    );
}

#[test]
fn composites_decode() {
    let inner = composite(vec![
        ("a", scalar("int4")),
        ("b", scalar("text")),
        ("c d", scalar("timestamptz")),
        ("e", array_of(scalar("int4"))),
        ("f", range_of(scalar("numeric"))),
    ]);
    let value = Model::Struct(vec![
        number(1),
        text("he \"said\" \\ (x), y"),
        number(1_577_836_800_000_000),
        list(vec![number(1), number(2), Model::Null]),
        range(text("1"), Model::Null, (true, false)),
    ]);
    let written = r#"(1,"he ""said"" \\ (x), y","2020-01-01 00:00:00+00","{1,2,NULL}","[1,)")"#;
    assert_eq!(decoded_one(&inner, written), value);
    assert_eq!(
        decoded_one(&inner, "(,,,,)"),
        Model::Struct(vec![Model::Null; 5])
    );
    let blank = decoded_one(&inner, r#"(1,"",,{},empty)"#);
    let empty = [
        number(1),
        text(""),
        Model::Null,
        list(vec![]),
        empty_range(),
    ];
    assert_eq!(blank, Model::Struct(empty.to_vec()));

    let nested = composite(vec![("c", inner.clone()), ("h", scalar("text"))]);
    let written = concat!(
        r#"("(1,""he """"said"""" \\\\ (x), y"",""2020-01-01 00:00:00+00"",""{1,2,NULL}"",""[1,)"")","#,
        "x)"
    );
    assert_eq!(
        decoded_one(&nested, written),
        Model::Struct(vec![value, text("x")])
    );
    let one = composite(vec![("a", scalar("text"))]);
    assert_eq!(decoded_one(&one, "()"), Model::Struct(vec![Model::Null]));
    assert_eq!(decoded_one(&one, "(\"\")"), Model::Struct(vec![text("")]));
    assert_eq!(
        decoded_one(&array_of(one), r#"{"(\"q\"\"\")",NULL}"#),
        list(vec![Model::Struct(vec![text("q\"")]), Model::Null])
    );
}

#[test]
fn ranges_and_multiranges_decode() {
    let ints = range_of(scalar("int4"));
    assert_eq!(
        decoded_one(&ints, "[1,5)"),
        range(number(1), number(5), (true, false))
    );
    assert_eq!(
        decoded_one(&ints, "(,5)"),
        range(Model::Null, number(5), (false, false))
    );
    assert_eq!(
        decoded_one(&ints, "(,)"),
        range(Model::Null, Model::Null, (false, false))
    );
    assert_eq!(decoded_one(&ints, "empty"), empty_range());
    let texts = range_of(scalar("text"));
    for (written, lower, upper) in [
        (r#"[a,"b""c")"#, text("a"), text("b\"c")),
        (r#"["",)"#, text(""), Model::Null),
        (r#"["a\\b","b,c")"#, text("a\\b"), text("b,c")),
        (r#"["(a","b]")"#, text("(a"), text("b]")),
        (r#"[NULL,"z z")"#, text("NULL"), text("z z")),
        ("[empty,f)", text("empty"), text("f")),
    ] {
        assert_eq!(
            decoded_one(&texts, written),
            range(lower, upper, (true, false)),
            "{written}"
        );
    }
    let times = r#"["2020-01-01 00:00:00","2020-01-01 00:00:01"]"#;
    let start = 1_577_836_800_000_000;
    assert_eq!(
        decoded_one(&range_of(scalar("timestamp")), times),
        range(number(start), number(start + 1_000_000), (true, true))
    );

    let many = multirange_of(scalar("int4"));
    let first = range(number(1), number(3), (true, false));
    let second = range(number(5), number(9), (true, false));
    assert_eq!(
        decoded_one(&many, "{[1,3),[5,9)}"),
        list(vec![first, second])
    );
    assert_eq!(decoded_one(&many, "{}"), list(vec![]));
    assert_eq!(
        decoded_one(
            &multirange_of(scalar("text")),
            r#"{["a""b",c}d),["x,y","z]")}"#
        ),
        list(vec![
            range(text("a\"b"), text("c}d"), (true, false)),
            range(text("x,y"), text("z]"), (true, false)),
        ])
    );
    assert_eq!(
        decoded_one(&array_of(many), r#"{"{[1,3)}"}"#),
        list(vec![list(vec![range(number(1), number(3), (true, false))])])
    );
}

#[test]
fn hstores_points_and_vectors_decode() {
    let written = r#"""=>"", "a"=>"1", "b"=>NULL, "c d"=>"x\"y\\z", "NULL"=>"NULL""#;
    let entry = |key: &str, value: Option<&str>| (key.to_owned(), value.map(str::to_owned));
    assert_eq!(
        decoded(&plan(&scalar("hstore")), &[written, ""]),
        [
            Model::Map(vec![
                entry("", Some("")),
                entry("a", Some("1")),
                entry("b", None),
                entry("c d", Some("x\"y\\z")),
                entry("NULL", Some("NULL")),
            ]),
            Model::Map(vec![]),
        ]
    );
    let point = |x, y| Model::Struct(vec![float(x), float(y)]);
    assert_eq!(decoded_one(&scalar("point"), "(1.5,-0)"), point(1.5, -0.0));
    assert_eq!(
        decoded_one(&scalar("point"), "(NaN,Infinity)"),
        point(f64::NAN, f64::INFINITY)
    );
    assert_eq!(
        decoded_one(&array_of(scalar("point")), "{\"(1,2)\",NULL}"),
        list(vec![point(1.0, 2.0), Model::Null])
    );
    assert_eq!(
        decoded(&plan(&scalar("vector")), &["[1,-2.5,1e-05]", "[]"]),
        [list([1.0, -2.5, 1e-5].map(float32).to_vec()), list(vec![])]
    );
}

#[test]
fn malformed_literals_are_refused_and_leave_no_trace() {
    let numbers = composite(vec![("a", scalar("int4")), ("b", scalar("int4"))]);
    let two_levels = array_of(array_of(scalar("int4")));
    let cases: [(PgType, &str, &[&str]); 8] = [
        (
            array_of(scalar("int4")),
            "{1,2}",
            &[
                "", "{", "{1", "{1,", "{1,}", "{,1}", "{1}}", "{1}x", "1", "{x}", "[1:1]",
                "{1,\"2}",
            ],
        ),
        (
            two_levels,
            "{\"{1}\"}",
            &["{\"{1}\",\"{x}\"}", "{\"{1}\"", "{\"{1\"}"],
        ),
        (
            numbers.clone(),
            "(1,2)",
            &[
                "", "(", "(1", "(1,", "(1,2", "(1)", "(1,2,3)", "(1,x)", "(1,2)x", "(1,\"2",
            ],
        ),
        (
            array_of(numbers),
            "{\"(1,2)\"}",
            &["{\"(1,2)\",\"(1,x)\"}", "{\"(1,2)\",\"(1)\"}"],
        ),
        (
            range_of(scalar("int4")),
            "[1,2)",
            &[
                "", "[", "[1", "[1,", "[1,2", "[1,x)", "[1)", "[1,2)x", "emptyx",
            ],
        ),
        (
            multirange_of(scalar("int4")),
            "{[1,2)}",
            &[
                "",
                "{",
                "{[1,2)",
                "{[1,2),",
                "{[1,2),}",
                "{[1,2)}x",
                "{[1,2),[3,x)}",
            ],
        ),
        (
            scalar("hstore"),
            "\"a\"=>\"1\"",
            &[
                "\"",
                "\"a\"",
                "\"a\"=>",
                "\"a\"=>1",
                "\"a\"=>\"1\",",
                "\"a\"=>\"1\", \"b\"=>x",
            ],
        ),
        (
            scalar("vector"),
            "[1]",
            &["", "[", "[1", "[1,]", "[1,x]", "1"],
        ),
    ];
    for (ty, good, bad) in cases {
        for policy in [OnInvalid::Error, OnInvalid::Clamp, OnInvalid::Null] {
            let mut builder = plan_column(&ty, &options(policy)).unwrap().builder();
            let mut expected = Vec::new();
            let value = decoded_one(&ty, good);
            for text in bad {
                builder.append_text(good.as_bytes()).unwrap();
                let error = builder.append_text(text.as_bytes());
                let error = error.expect_err(text);
                assert!(
                    error.kind.starts_with("malformed") || error.kind.contains("fields"),
                    "{error}"
                );
                assert_eq!(&error.text, text);
                builder.append_text(good.as_bytes()).unwrap();
                expected.extend([value.clone(), Model::Null, value.clone()]);
            }
            assert_eq!(models(&builder.finish().unwrap()), expected);
        }
    }
}
