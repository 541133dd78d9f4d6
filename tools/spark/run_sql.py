"""Runs SQL statements in a Spark session; its settings come from PYSPARK_SUBMIT_ARGS (see `sql`)."""
import argparse
import json
import os
import sys


def split(text):
    """Statements of `text`, cut at `;` outside of quotes and comments."""
    out, cur, i, quote = [], "", 0, None
    while i < len(text):
        two, one = text[i:i + 2], text[i]
        if quote:
            if one == "\\" and quote != "`":
                cur, i = cur + two, i + 2
                continue
            if one == quote:
                quote = None
        elif two == "--":
            end = text.find("\n", i)
            i = len(text) if end < 0 else end
            continue
        elif two == "/*":
            end = text.find("*/", i + 2)
            i = len(text) if end < 0 else end + 2
            continue
        elif one in "'\"`":
            quote = one
        elif one == ";":
            out.append(cur)
            cur, i = "", i + 1
            continue
        cur, i = cur + one, i + 1
    return [s.strip() for s in out + [cur] if s.strip()]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("file")
    args.add_argument("--keep-going", action="store_true")
    args = args.parse_args()
    os.environ.pop("SPARK_REMOTE", None)
    from pyspark.sql import SparkSession
    spark = SparkSession.builder.getOrCreate()
    failed = False
    for statement in split(open(args.file, encoding="utf-8").read()):
        try:
            frame = spark.sql(statement)
            # Not by way of Arrow: what OPTIMIZE returns has NULL where its type allows none.
            rows = [row.asDict(recursive=True) for row in frame.collect()]
        except Exception as error:  # the message is the result
            failed = True
            print(json.dumps({"error": str(error).split("JVM stacktrace")[0].strip()}), flush=True)
            if not args.keep_going:
                break
            continue
        print(json.dumps(rows, default=str), flush=True)
    spark.stop()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
