//! How a source file becomes a program.

use std::path::Path;

use crate::error::{Error, Result};
use crate::limits::Limits;

/// A language; words of `compile` and `run` are arguments, the first a program of one of [`PLACES`].
#[derive(Debug)]
pub(crate) struct Language {
    name: &'static str,
    /// Name of the source file in the box.
    pub(crate) file: &'static str,
    compile: &'static str,
    run: &'static str,
    /// The Debian package with the compiler.
    package: &'static str,
}

const PLACES: [&str; 5] = ["/usr/bin", "/usr/local/bin", "/usr/local/go/bin", "/usr/lib/go/bin", "/box"];

const LANGUAGES: [Language; 7] = [
    Language {
        name: "c",
        file: "main.c",
        compile: "gcc -O2 -std=gnu17 -o main main.c -lm",
        run: "/box/main",
        package: "gcc",
    },
    Language {
        name: "cpp",
        file: "main.cpp",
        compile: "g++ -O2 -std=gnu++20 -o main main.cpp",
        run: "/box/main",
        package: "g++",
    },
    Language {
        name: "go",
        file: "main.go",
        compile: "go build -o main main.go",
        run: "/box/main",
        package: "golang-go",
    },
    Language {
        name: "java",
        file: "Main.java",
        compile: "javac -J-XX:+UseSerialGC -J-XX:TieredStopAtLevel=1 -encoding UTF-8 Main.java",
        // The heap may grow to the limit, so that the kernel enforces the limit, as for every other language.
        run: "java -Xmx{memory} -XX:+UseSerialGC -cp /box Main",
        package: "default-jdk-headless",
    },
    Language { name: "node", file: "main.js", compile: "node --check main.js", run: "node main.js", package: "nodejs" },
    Language {
        name: "python",
        file: "main.py",
        compile: "python3 -m py_compile main.py",
        run: "python3 main.py",
        package: "python3",
    },
    Language { name: "rust", file: "main.rs", compile: "rustc -O -o main main.rs", run: "/box/main", package: "rustc" },
];

impl Language {
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        LANGUAGES.iter().find(|known| known.name == name).ok_or_else(|| {
            let known: Vec<&str> = LANGUAGES.iter().map(|l| l.name).collect();
            Error::Usage(format!("--language {name}: unknown; one of {}", known.join(", ")))
        })
    }

    pub(crate) fn compile_command(&self, limits: &Limits) -> Result<Vec<String>> {
        self.command(self.compile, limits)
    }

    pub(crate) fn run_command(&self, limits: &Limits) -> Result<Vec<String>> {
        self.command(self.run, limits)
    }

    fn command(&self, words: &str, limits: &Limits) -> Result<Vec<String>> {
        let memory = limits.memory.to_string();
        let mut words = words.split(' ').map(|word| word.replace("{memory}", &memory));
        let program = words.next().unwrap_or_default();
        let found = PLACES.iter().map(|place| Path::new(place).join(&program)).find(|path| path.exists());
        let path = if program.starts_with('/') { Some(program.clone().into()) } else { found };
        let path = path.ok_or_else(|| {
            Error::Usage(format!("--language {}: no {program} here; apt-get install {}", self.name, self.package))
        })?;
        Ok([path.display().to_string()].into_iter().chain(words).collect())
    }
}

/// The line of a compiler's output that describes the error.
pub(crate) fn first_message(output: &str) -> &str {
    let lines = || output.lines().map(str::trim).filter(|line| !line.is_empty());
    let has_error = |line: &&str| line.contains("error") || line.contains("Error");
    lines().find(has_error).or_else(|| lines().next()).unwrap_or("the compiler gave no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_the_message() {
        let gcc = "main.c: In function 'main':\nmain.c:1:12: error: 'x' undeclared\n    1 | int main(){return x;}\n";
        assert_eq!(first_message(gcc), "main.c:1:12: error: 'x' undeclared");
        let python = "  File \"main.py\", line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax\n";
        assert_eq!(first_message(python), "SyntaxError: invalid syntax");
        assert_eq!(first_message("\n  killed\n"), "killed");
        assert_eq!(first_message(""), "the compiler gave no message");
    }

    #[test]
    fn the_message_for_an_unknown_language_lists_the_known_ones() {
        let message = Language::named("cobol").unwrap_err().to_string();
        assert_eq!(message, "--language cobol: unknown; one of c, cpp, go, java, node, python, rust");
    }
}
