import BrokerInterface
import Glibc
import Numbers
import SystemCalls
import Targets
import Testing
import Varlink

@testable import ubd

@Suite("The command line")
struct ParsingTests {
    private func run(_ arguments: [String]) -> (status: Int32, console: Recorder) {
        let console = Recorder()
        let environment = CommandEnvironment(
            console: console, socketPath: "/nowhere/socket", host: FakeMachine.healthy, executable: "")
        return (CommandLineTool.run(arguments, environment), console)
    }

    @Test("has the same options long and short")
    func longAndShort() throws {
        let short = try AddArguments.parse(["-t", "loop", "-f", "x", "-n", "3", "-q", "2", "-d", "9"]).command
        let long = try AddArguments.parse([
            "--target", "loop", "--file", "x", "--number", "3", "--queues", "2", "--depth=9",
        ]).command
        #expect(try short.request == long.request)
        #expect(short.ofTarget.inputs.map(\.name) == ["file"] && short.ofTarget.inputs.map(\.value) == ["x"])
        #expect(try DeleteArguments.parse(["-a"]).all && DeleteArguments.parse(["--all"]).all)
    }

    @Test(
        "has the examples of a command's help in one column",
        arguments: UBD.configuration.subcommands.map { $0._commandName })
    func columns(name: String) throws {
        let command = try #require(UBD.configuration.subcommands.first { $0._commandName == name })
        let lines = command.configuration.discussion.split(separator: "\n")
        let columns = lines.compactMap { line in
            line.drop { $0 == " " }.hasPrefix("ubd \(name)") ? line.prefix { $0 == " " }.count : nil
        }
        #expect(Set(columns).count <= 1, "\(columns)")
    }

    @Test("turns sizes with units into decimal bytes")
    func sizes() throws {
        let command = try AddArguments.parse([
            "-t", "loop", "--offset", "1M", "--size", "2g", "--block-size", "4K", "--max-io-size", "1MiB",
            "--read-only",
        ]).command
        #expect(
            try command.request
                == AddRequest(
                    target: "loop", queues: 1, maxIOBytes: 1 << 20, readOnly: true,
                    options: [
                        OptionValue("size", "2147483648"), OptionValue("block-size", "4096"),
                        OptionValue("offset", "1048576"),
                    ]))
    }

    @Test(
        "that is wrong costs status 2 and one line that names what and where to look",
        arguments: [
            ["add"], ["add", "-t"], ["add", "-t", "iscsi"], ["add", "-t", "null", "--size", "x"],
            ["add", "-t", "null", "-q", "0"],
            ["add", "-t", "null", "-q", "two"], ["add", "-t", "null", "--max-io-size", "5000"],
            ["add", "-t", "null", "extra"],
            ["add", "-t", "null", "--size", "99999999999T"], ["add", "-t", "null", "--size", "513"],
            ["add", "-t", "null", "--offset", "512"], ["add", "-t", "null", "-n", "9999999"],
            ["add", "-t", "null", "--frobnicate"],
            ["del"], ["del", "-n", "0", "-a"], ["del", "-n", "-1"], ["del", "-n", "x"], ["list", "-n", "x"], ["nope"],
        ])
    func wrong(arguments: [String]) throws {
        let (status, console) = run(arguments)
        #expect(status == 2)
        try #require(console.errors.count == 1)
        #expect(console.errors[0].hasPrefix("ubd: ") && console.errors[0].contains("; "))
        #expect(!console.errors[0].contains("\n"))
        #expect(console.output == [])
        let (_, jsonConsole) = run(arguments + ["--json"])
        let json = try JSON(parsing: jsonConsole.output.joined())
        #expect(json["exit"] == 2)
    }

    @Test(
        "an option that is given twice is refused, with both values: the last one would win, and the others be lost",
        arguments: [
            (["del", "-n", "0", "-n", "1"], "--number is given twice, as '0' and as '1'"),
            (["del", "-n", "0", "--number=1"], "--number is given twice, as '0' and as '1'"),
            (["upgrade", "-n", "0", "-n", "0"], "--number is given twice"),
            (["list", "-n", "0", "-n", "1", "--json"], "--number is given twice"),
            (["add", "-t", "loop", "-f", "a", "--file", "b"], "--file is given twice, as 'a' and as 'b'"),
            (["add", "-t", "null", "--target", "loop"], "--target is given twice"),
            (["add", "-t", "null", "--size", "1M", "--size=2M"], "--size is given twice"),
            (["add", "-t", "null", "--mode", "copy", "--mode", "batch"], "--mode is given twice"),
            (["stats", "--watch", "1", "--watch", "2"], "--watch is given twice"),
        ])
    func twice(_ arguments: [String], _ message: String) {
        let (status, console) = run(arguments)
        #expect(status == 2)
        #expect(console.errors.count == 1 && console.errors[0].hasPrefix("ubd: " + message), "\(console.errors)")
    }

    @Test("a flag may be given twice, and thousands of options are read in no time")
    func flagsTwice() throws {
        // There is no broker, so the line was valid.
        #expect(run(["list", "--json", "--json"]).status == 6)
        #expect(run(["del", "-a", "--all", "--force", "--force"]).status == 6)
        let began = monotonicNanoseconds()
        #expect(run(["add"] + [[String]](repeating: ["-d", "5"], count: 20_000).joined()).status == 2)
        #expect(monotonicNanoseconds() - began < 5_000_000_000)
    }

    @Test("every short option of every command is known as what it is long, and every flag as one")
    func names() throws {
        for command in UBD.configuration.subcommands {
            let help = try JSON(parsing: Array(command._dumpHelp().utf8), limits: JSONLimits(bytes: 1 << 20, depth: 20))
            guard case .array(let arguments)? = help["command"]?["arguments"] else {
                Issue.record("no arguments")
                return
            }
            for argument in arguments where argument["kind"] != "positional" {
                guard case .array(let names)? = argument["names"] else { continue }
                let words = names.compactMap { name -> String? in
                    guard case .string(let text)? = name["name"] else { return nil }
                    return (name["kind"] == "short" ? "-" : "--") + text
                }
                let values = argument["kind"] == "flag" ? [] : ["1"]
                for first in words {
                    for second in words {
                        let line = [command._commandName] + [first] + values + [second] + values
                        if argument["kind"] == "flag" {
                            #expect(throws: Never.self) { try Repetition.refuse(line) }
                        } else {
                            #expect(throws: CommandFailure.self, "\(line)") { try Repetition.refuse(line) }
                        }
                    }
                }
            }
        }
    }

    @Test("a value that begins with a dash is named: it is taken for an option")
    func dashes() {
        #expect(run(["del", "-n", "-1"]).console.errors.first?.contains("'-n <id>': '-1' can not be one; ") == true)
        #expect(
            run(["add", "-t", "null", "--size", "-5"]).console.errors.first?.contains("'--size <bytes>': '-5' can not")
                == true)
    }

    @Test(
        "explains itself",
        arguments: UBD.configuration.subcommands.map { $0._commandName })
    func help(command: String) {
        for arguments in [[command, "--help"], ["help", command]] {
            let (status, console) = run(arguments)
            #expect(status == 0)
            #expect(console.output.joined().contains("USAGE: ubd \(command)"))
            #expect(console.errors == [])
        }
    }

    @Test("tells all exit statuses, units and examples in its help")
    func topHelp() {
        let text = run(["--help"]).console.output.joined(separator: "\n")
        for status in ExitStatus.allCases { #expect(text.contains("\(status.rawValue)  \(status.meaning.prefix(20))")) }
        #expect(text.contains("K, M, G or T") && text.contains("ubd add -t loop -f 1.img"))
        #expect(!text.contains("flush-device"))
        let add = run(["add", "--help"]).console.output.joined(separator: "\n")
        for target in TargetList.all {
            for name in target.givenInputs.map(\.name) + target.givenOptions.map(\.name) {
                // Among the options, and below its target.
                #expect(add.contains("\n    --\(name) "), "\(name)")
                #expect(add.contains("  --\(name)") || add.contains(", --\(name)"), "\(name)")
            }
        }
        #expect(run([]).status == 0)
    }

    @Test("can bring what every target takes")
    func inputs() {
        // One file, opened with its user's rights (AddCommand), and perhaps a secret behind it, or layer and map before it; or connections.
        // More needs more.
        for input in TargetList.all.flatMap(\.givenInputs) {
            #expect([.data, .base].contains(input.role) && input.count == 1...1 || input.role == .sockets)
        }
        for target in TargetList.all {
            #expect(target.givenInputs.count <= 1)
            #expect(!target.takesSecret || target.inputs.map(\.role) == [.data, .secret])
            #expect(!target.hasBlockMap || target.inputs.map(\.role) == [.layer, .blockMap, .base])
        }
    }

    @Test("takes times in milliseconds, seconds and minutes")
    func times() {
        for (text, milliseconds) in [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("7", 7000), ("0", 0)] {
            #expect(TargetArguments.milliseconds(text) == UInt64(milliseconds))
        }
        for text in ["", "s", "ms", "m", "1h", "-1s", "1.5s", " 1s", "9223372036854775807m"] {
            #expect(TargetArguments.milliseconds(text) == nil, "\(text)")
        }
    }

    @Test("refuses what another target takes, and says which option it is")
    func others() {
        for (line, part) in [
            (["-t", "null", "--buffered"], "target null has no option 'buffered'"),
            (["-t", "null", "--size", "1.5G"], "--size can not be '1.5G'"),
            (["-t", "null", "--block-size", "8K"], "--block-size can not be '8192'"),
        ] {
            let (status, console) = run(["add"] + line)
            #expect(status == 2 && console.errors.first?.contains(part) == true, "\(console.errors)")
        }
    }

    @Test("names the option that was typed, whatever the wire calls it")
    func optionNames() {
        for (option, value) in [("--io-timeout", "1"), ("--mode", "fast"), ("--recovery", "soon")] {
            let (status, console) = run(["add", "-t", "null", option, value])
            #expect(status == 2)
            #expect(console.errors.first?.hasPrefix("ubd: \(option) can not be ") == true, "\(console.errors)")
        }
    }

    @Test("asked for help about what is no command says so")
    func noSuchTopic() {
        let (status, console) = run(["help", "nosuch"])
        #expect(status == 2)
        #expect(console.errors == ["ubd: there is no command 'nosuch'; see 'ubd --help'"])
    }

    @Test("does not succeed when what it prints goes nowhere")
    func lost() {
        let console = Recorder()
        console.lost = SystemError("write", ENOSPC)
        let environment = CommandEnvironment(
            console: console, socketPath: "/nowhere", host: FakeMachine.healthy, executable: "")
        #expect(CommandLineTool.run(["--version"], environment) == 1)
        #expect(console.errors.first?.contains("could not be written: No space left on device") == true)
    }

    @Test("tells its version")
    func version() {
        let (status, console) = run(["--version"])
        #expect(status == 0)
        #expect(console.output == ["ubd \(UBDVersion.text)"])
    }

    @Test("generates shell completions", arguments: ["bash", "zsh", "fish"])
    func completions(shell: String) {
        let (status, console) = run(["--generate-completion-script", shell])
        #expect(status == 0)
        #expect(console.output.joined().contains("doctor"))
        for name in TargetList.all.flatMap({ $0.givenInputs.map(\.name) + $0.givenOptions.map(\.name) }) {
            #expect(console.output.joined().contains(name), "\(name)")
        }
    }

    @Test(
        "without a broker costs status 6",
        arguments: [["list"], ["info"], ["features"], ["del", "-n", "0"], ["add", "-t", "null"]])
    func noBroker(arguments: [String]) {
        let (status, console) = run(arguments)
        #expect(status == 6)
        #expect(console.errors.count == 1)
        #expect(console.errors.first?.contains("no broker at /nowhere/socket") == true)
    }
}
