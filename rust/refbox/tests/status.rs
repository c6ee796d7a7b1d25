//! Each status follows from its evidence, and each language runs.

mod common;

use common::{Place, exists, root};

#[test]
fn every_status_is_reached_by_a_program_made_for_it() {
    if !root() {
        return;
    }
    let place = Place::new("status");
    let table: [(&str, &[&str], &str, &str); 12] = [
        ("OK", &[], "exit 0", "exit code 0"),
        ("RE", &[], "exit 3", "exit code 3"),
        ("RE", &[], "kill -SEGV $$", "killed by SIGSEGV"),
        ("RE", &[], "kill -KILL $$", "killed by SIGKILL"),
        ("TLE", &["--wall", "0.2"], "sleep 600", "more than 0.2 s of wall-clock time"),
        ("TLE", &["--wall", "0.2"], "kill -STOP $$", "more than 0.2 s of wall-clock time"),
        ("TLE", &["--cpu", "0.2"], "while :; do :; done", "more than 0.2 s of processor time"),
        (
            "TLE",
            &["--cpu", "0.2"],
            "(while :; do :; done) & (while :; do :; done) & wait",
            "more than 0.2 s of processor time",
        ),
        ("MLE", &["--memory", "16M"], "head -c 1G /dev/zero | tail", "more than 16777216 bytes of memory"),
        ("MLE", &["--memory", "16M"], "head -c 1G /dev/zero >/dev/shm/x; exit 0", "more than 16777216 bytes of memory"),
        ("OLE", &["--output", "4K"], "yes", "more than 4096 bytes of output"),
        ("OLE", &["--file-size", "1M"], "exec head -c 2M /dev/zero >/tmp/x", "a file of more than 1048576 bytes"),
    ];
    for (status, limits, script, reason) in table {
        let mut arguments = limits.to_vec();
        arguments.extend(["--", "/bin/sh", "-c", script]);
        let ran = place.run(1, &arguments);
        assert_eq!((ran.code, ran.status()), (0, status), "{script}: {}", ran.all());
        assert!(ran.result["reason"].as_str().unwrap().starts_with(reason), "{script}: {}", ran.all());
        place.assert_nothing_left(script);
    }
}

#[test]
fn a_result_has_the_measurements() {
    if !root() {
        return;
    }
    let place = Place::new("result");
    let ran = place.run(7, &["--stdin", &place.write("in", "five\n"), "--", "/bin/cat"]);
    assert_eq!(ran.stdout, "five\n");
    assert_eq!((&ran.result["version"], &ran.result["box"]), (&1.into(), &7.into()), "{}", ran.all());
    assert_eq!((&ran.result["output_bytes"], &ran.result["exit_code"]), (&5.into(), &0.into()), "{}", ran.all());
    for measured in ["wall_ms", "cpu_ms", "memory_peak_bytes"] {
        assert!(ran.result[measured].as_f64().is_some_and(|n| n > 0.0), "{measured}: {}", ran.all());
    }
    assert!(ran.result["limits_by"]["memory"].is_string(), "{}", ran.all());
}

#[test]
fn output_is_cut_at_the_limit_and_goes_to_the_given_file() {
    if !root() {
        return;
    }
    let place = Place::new("output");
    let (out, err) = (place.write("out", "old"), place.write("err", "old"));
    let ran = place
        .run(1, &["--output", "100", "--stdout", &out, "--stderr", &err, "--", "/bin/sh", "-c", "echo e >&2; yes"]);
    assert_eq!(ran.status(), "OLE", "{}", ran.all());
    let lengths = [out, err].map(|path| std::fs::metadata(path).unwrap().len());
    assert_eq!(lengths.iter().sum::<u64>(), 100);
}

#[test]
fn output_that_cannot_be_written_is_a_failure_of_the_sandbox_but_a_closed_reader_is_not() {
    if !root() || !exists("/dev/full") {
        return;
    }
    let place = Place::new("full");
    let ran = place.run(1, &["--stdout", "/dev/full", "--", "/bin/echo", "lost"]);
    assert_eq!((ran.code, ran.status()), (1, "IE"), "{}", ran.all());
    assert_eq!(ran.result["reason"], "write the payload's output: no space left on device: the disk is full");
    let mut child = place.run_command(1, &["--", "/bin/sh", "-c", "echo lost; sleep 0.1; echo lost"]).spawn().unwrap();
    drop(child.stdout.take());
    let ran = place.ran(1, common::finish(child));
    assert_eq!((ran.code, ran.status()), (0, "OK"), "{}", ran.all());
}

#[test]
fn a_machine_without_descriptors_is_no_mistake_of_the_caller() {
    if !root() {
        return;
    }
    let place = Place::new("descriptors");
    let wanted = place.run_command(1, &["--", "/bin/true"]);
    let mut limited = std::process::Command::new("/bin/sh");
    limited.args(["-c", "ulimit -n 4; exec \"$0\" \"$@\""]).arg(wanted.get_program()).args(wanted.get_args());
    limited.env("REFBOX_STATE", place.state()).stdin(std::process::Stdio::null());
    limited.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let ran = place.ran(1, common::finish(limited.spawn().unwrap()));
    assert_eq!(ran.code, 1, "{}", ran.all());
    assert!(ran.stderr.ends_with(": too many open files: out of file descriptors\n"), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1);
}

#[test]
fn a_supervisor_that_is_terminated_cleans_up_and_reports_ie() {
    if !root() {
        return;
    }
    let place = Place::new("terminated");
    let held = place.held(2, &[]);
    let pid = held.child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    let ran = held.ended(&place, 2);
    assert_eq!((ran.code, ran.status()), (1, "IE"), "{}", ran.all());
    assert_eq!(ran.result["reason"], "the supervisor received SIGTERM");
    place.assert_nothing_left("after SIGTERM");
}

/// Language, its working source, its output, a source that does not compile, and a word of the message.
const SOURCES: [(&str, &str, &str, &str, &str); 5] = [
    ("c", "#include <stdio.h>\nint main(void){puts(\"hello\");}", "hello\n", "int main(void){return x;}", "undeclared"),
    (
        "cpp",
        "#include <iostream>\nint main(){std::cout<<\"hello\\n\";}",
        "hello\n",
        "int main(){return x;}",
        "not declared",
    ),
    (
        "java",
        "public class Main { public static void main(String[] a) { System.out.println(\"hello\"); } }",
        "hello\n",
        "public class Main { int x = \"\"; }",
        "incompatible types",
    ),
    ("python", "print('hello')", "hello\n", "print('hello'", "SyntaxError"),
    ("node", "console.log('hello')", "hello\n", "let let = 1", "SyntaxError"),
];

#[test]
fn each_language_compiles_and_runs_or_reports_its_first_error() {
    if !root() {
        return;
    }
    let place = Place::new("language");
    for (language, good, output, bad, word) in SOURCES {
        let ran = place.run(1, &["--language", language, "--source", &place.write("good", good)]);
        if ran.code == 2 && ran.stderr.contains("apt-get install") {
            eprintln!("skipped {language}: {}", ran.stderr.trim());
            continue;
        }
        assert_eq!((ran.status(), ran.stdout.as_str()), ("OK", output), "{language}: {}", ran.all());
        let ran = place.run(1, &["--language", language, "--source", &place.write("bad", bad)]);
        assert_eq!((ran.code, ran.status()), (0, "CE"), "{language}: {}", ran.all());
        assert!(ran.result["reason"].as_str().unwrap().contains(word), "{language}: {}", ran.all());
        place.assert_nothing_left(language);
    }
}

#[test]
fn a_user_namespace_for_root_changes_no_status() {
    if !root() || !exists("/proc/self/ns/user") {
        return;
    }
    let place = Place::new("userns");
    let ran =
        place.run(1, &["--user-namespace", "--", "/bin/sh", "-c", "cat /proc/self/uid_map; echo >/dev/null; id -u"]);
    if ran.stderr.contains("make namespaces: operation not permitted") {
        eprintln!("skipped: no user namespace here, as in a chroot: {}", ran.stderr);
        return;
    }
    assert_eq!(ran.status(), "OK", "{}", ran.all());
    assert!(ran.stdout.ends_with("60001\n") && ran.stdout.lines().count() == 3, "{}", ran.all());
}

#[test]
fn an_unprivileged_user_has_boxes_and_the_result_names_the_limits_that_only_rlimits_enforce() {
    if !root() || !exists("/usr/bin/setpriv") {
        return;
    }
    let place = Place::new("ordinary");
    let home = place.dir.join("home");
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(12_345), Some(12_345)).unwrap();
    let program = place.dir.join("program");
    std::fs::copy(common::REFBOX, &program).unwrap();
    let run = |more: &[&str]| {
        let mut command = std::process::Command::new("/usr/bin/setpriv");
        command.args(["--reuid", "12345", "--regid", "12345", "--clear-groups", program.to_str().unwrap()]);
        command
            .args(["run", "--box", "1", "--state", "state", "--result", "result.json"])
            .args(more)
            .current_dir(&home);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let output = common::finish(command.spawn().unwrap());
        let result = std::fs::read(home.join("result.json")).unwrap_or_default();
        (output, serde_json::from_slice(&result).unwrap_or(serde_json::Value::Null))
    };
    let script = "[ $(id -u) = 65534 ] && ! mount -t tmpfs none /tmp 2>/tmp/x && echo well";
    let (output, result) = run(&["--", "/bin/sh", "-c", script]);
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("operation not permitted") || errors.contains("no space left") {
        eprintln!("skipped: no user namespace for ordinary users here: {errors}");
        return;
    }
    assert_eq!(
        (result["status"].as_str(), output.stdout.as_slice()),
        (Some("OK"), &b"well\n"[..]),
        "{result} {errors}"
    );
    let (_, result) = run(&["--wall", "0.2", "--", "/bin/sleep", "600"]);
    assert_eq!(result["status"], "TLE", "{result}");
    if result["limits_by"]["memory"] == "rlimit" {
        let (output, _) = run(&["--require-cgroups", "--", "/bin/true"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("cgroups cannot enforce every limit"), "{output:?}");
    }
}

#[test]
fn compiled_files_do_not_count_as_the_payloads_memory_and_a_heap_over_the_limit_is_mle() {
    if !root() {
        return;
    }
    let place = Place::new("compiled");
    if exists("/usr/bin/gcc") {
        let source = place.write("large.c", "char large[4 << 20] = {1};\nint main(void) { return 0; }\n");
        let ran = place.run(1, &["--memory", "2M", "--language", "c", "--source", &source]);
        assert_eq!(ran.status(), "OK", "{}", ran.all());
    }
    if exists("/usr/bin/javac") {
        let text = "public class Main { public static void main(String[] a) { byte[][] all = new byte[64][];
            for (int i = 0; i < 64; i++) { all[i] = new byte[8 << 20]; java.util.Arrays.fill(all[i], (byte) 1); } } }";
        let source = place.write("Main.java", text);
        let ran = place.run(1, &["--memory", "256M", "--language", "java", "--source", &source]);
        assert_eq!(ran.status(), "MLE", "{}", ran.all());
    }
    place.assert_nothing_left("compiled");
}
