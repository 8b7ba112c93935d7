import BrokerInterface
import Foundation
import Glibc
import Targets
import Testing

@testable import ubd

@Suite("A device that comes back by itself")
struct EnableTests {
    private let folder = TemporaryFolder()

    /// A service manager whose systemctl writes down its words, and answers as the script says.
    private func manager(_ script: String = "exit 0", isSystem: Bool = false) -> ServiceManager {
        let program = folder.path + "/systemctl"
        try! Data("#!/bin/sh\necho \"$*\" >>\(folder.path)/calls\n\(script)\n".utf8)
            .write(to: URL(fileURLWithPath: program))
        chmod(program, 0o755)
        return ServiceManager(
            isSystem: isSystem, folder: folder.path + "/config/ubd/devices", runtime: folder.path + "/runtime",
            systemctl: program)
    }

    private var calls: [String] {
        let text = (try? String(contentsOfFile: folder.path + "/calls", encoding: .utf8)) ?? ""
        return text.split(separator: "\n").map(String.init)
    }

    private func environment(
        _ broker: FakeBroker, _ console: Recorder, _ manager: ServiceManager
    ) -> CommandEnvironment {
        var environment = broker.environment(console)
        environment.manager = { _ in manager }
        mkdir(folder.path + "/runtime", 0o755)
        return environment
    }

    private func text(_ path: String) -> String { (try? String(contentsOfFile: path, encoding: .utf8)) ?? "" }

    /// A broker that lists these devices.
    private func listing(_ devices: [Device], connections: Int = 1) -> FakeBroker {
        FakeBroker(connections: connections) { connection, _ in
            connection.send(.init(parameters: ListReply(devices: devices).json))
        }
    }

    // MARK: Names

    @Test("is named like its file, without the ending, or else like its target")
    func usualName() throws {
        #expect(try EnabledName.usual(file: "/srv/data.img", target: "loop") == "data")
        #expect(try EnabledName.usual(file: "disk", target: "loop") == "disk")
        #expect(try EnabledName.usual(file: nil, target: "null") == "null")
        #expect(throws: CommandFailure.self) { try EnabledName.usual(file: "/srv/my disk.img", target: "loop") }
    }

    // MARK: The file

    @Test(
        "has a file from which systemd reads the words that were asked for",
        arguments: [
            ["-t", "loop", "--file", "/srv/data.img"], ["-t", "loop", "-f", "/srv/my disk's \"best\" \\ one"],
            ["-t", "loop", "-f", "/srv/ä\\\\n", "--read-only"],
            ["-t", "nbd", "--", "/bin/sh", "-c", "echo '#' $HOME ; \\"],
            ["-t", "loop", "-f", "/%i/$x/#y;z", ""],
        ])
    func roundTrip(words: [String]) throws {
        let manager = manager()
        let text = try DeviceDescription(number: "7", options: words).text(name: "data", manager)
        #expect(DeviceDescription(file: text) == DeviceDescription(number: "7", options: words))
        #expect(text.hasPrefix("# Device data, which ubd@data.service brings back"))
    }

    @Test("no file has what systemd cannot read", arguments: ["a\nb", "a\u{7F}", TypedText.text([0x61, 0xFF])])
    func unreadable(word: String) {
        #expect(throws: CommandFailure.self) { try DeviceDescription.quoted(word) }
    }

    @Test("a file that somebody has written is read as systemd reads it")
    func edited() {
        let text = """
            # NUMBER=1
            ; OPTIONS=x
              NUMBER = "9" \t
            NUMBER
            OPTIONS=-t loop \\
              -f '/srv/my disk.img' --offset\t1M \t
            OTHER='a'"b\\$c"
            """
        let read = DeviceDescription(file: text)
        #expect(
            read == DeviceDescription(number: "9", options: ["-t", "loop", "-f", "/srv/my disk.img", "--offset", "1M"]))
        #expect(EnvironmentText.variables(text)["OTHER"] == "ab$c")
        #expect(read.problem == nil)
    }

    @Test(
        "what is wrong with a file is told",
        arguments: [
            ("", "NUMBER is missing"), ("NUMBER=x\nOPTIONS=-t null", "NUMBER can not be 'x'"),
            ("NUMBER=1048576\nOPTIONS=-t null", "NUMBER can not be '1048576'"), ("NUMBER=any", "OPTIONS is missing"),
            ("NUMBER=1\nOPTIONS=-t null --nonsense", "OPTIONS are not those of 'ubd add'"),
            ("NUMBER=1\nOPTIONS=-t null -n 2", "OPTIONS has a number, which NUMBER says"),
            (
                "NUMBER=1\nOPTIONS=-t crypt -f /x",
                "a crypt device cannot come back by itself when somebody types its key"
            ),
        ])
    func problems(text: String, told: String) { #expect(DeviceDescription(file: text).problem == told) }

    // MARK: What can come back

    private func comesBack(_ line: String) throws -> ComingBack {
        let words = ["add"] + line.split(separator: " ").map(String.init)
        let plain = PlainLine.command(words) as? AddCommand
        let parsed = plain == nil ? try UBD.parseAsRoot(words) as? AddArguments : nil
        let command = try #require(plain ?? parsed?.command)
        return try ComingBack(command)
    }

    @Test("comes back with all that was asked for, and with names of files from / on")
    func options() throws {
        let here = FileManager.default.currentDirectoryPath
        #expect(
            try comesBack(
                "-t loop -f ./x.img --offset 1M -q 2 -d 9 --max-io-size 1M --read-only --recovery queue --io-timeout 5 "
                    + "--mode copy --cpus 0-1 --shared --buffered --partition 2 --name other -n 3 --json"
            ).options == [
                "-t", "loop", "--file", here + "/x.img", "--offset", "1M", "--buffered", "--queues", "2", "--depth",
                "9", "--max-io-size", "1M", "--read-only", "--recovery", "queue", "--io-timeout", "5", "--mode", "copy",
                "--cpus", "0-1", "--shared", "--name", "other", "--partition", "2",
            ])
        #expect(
            try comesBack("-t nbd --uri nbds://h/e --tls-certificates c --tls-hostname x --on-lost wait").options == [
                "-t", "nbd", "--uri", "nbds://h/e", "--on-lost", "wait", "--tls-certificates", here + "/c",
                "--tls-hostname", "x",
            ])
        #expect(
            try comesBack("-t overlay -f b.img --memory 1G --scratch s").options == [
                "-t", "overlay", "--file", here + "/b.img", "--memory", "1G", "--scratch", here + "/s",
            ])
        #expect(
            try comesBack("-t fault -f /x --cache 1M --seed 7").options == [
                "-t", "fault", "--file", "/x", "--seed", "7", "--cache", "1M",
            ])
        let server = try comesBack("-t nbd --restart-command -- sh -c x")
        #expect(
            server.options.suffix(4).dropFirst(0).map { $0.hasSuffix("/sh") ? "sh" : $0 } == ["--", "sh", "-c", "x"])
        #expect(server.options.contains { $0.hasPrefix("/") && $0.hasSuffix("/sh") } && server.notes.count == 1)
    }

    @Test("a key that somebody types, or that only this process has open, is refused; one in a file is not")
    func secrets() throws {
        #expect(throws: CommandFailure.self) { try comesBack("-t crypt -f x") }
        #expect(throws: CommandFailure.self) { try comesBack("-t crypt -f x --key-fd 5") }
        let file = try comesBack("-t crypt -f /x --key-file /k --header /h")
        #expect(file.options == ["-t", "crypt", "--file", "/x", "--key-file", "/k", "--header", "/h"])
    }

    @Test("a socket that is named from a folder on is refused, and so is a program that is not there")
    func elsewhere() throws {
        #expect(throws: CommandFailure.self) { try comesBack("-t nbd --uri nbd+unix:///e?socket=s") }
        #expect(throws: CommandFailure.self) { try comesBack("-t nbd -- no-such-program") }
        _ = try comesBack("-t nbd --uri nbd+unix:///e?socket=/run/s")
        _ = try comesBack("-t nbd --uri nbd+unix:///e?socket=%2Frun%2Fs")
    }

    @Test("every target can be enabled, is refused, or has a note, by what its manifest says")
    func kinds() throws {
        for target in TargetList.all {
            let input = target.givenInputs.first.map { $0.role == .sockets ? "--uri nbd://h/e" : "--\($0.name) /x" }
            let back = try? comesBack("-t \(target.name) \(input ?? "")")
            #expect((back == nil) == target.takesSecret, "\(target.name)")
            let isLost = target.isInMemory || target.hasBlockMap
            #expect(back?.notes.isEmpty != isLost || target.takesSecret, "\(target.name)")
        }
    }

    // MARK: ubd add --enable

    @Test("ubd add --enable writes the file, adds the device, and hands it to the unit")
    func add() throws {
        let broker = FakeBroker { connection, _ in
            connection.send(AddReply.added(FakeBroker.device(id: 3, target: "null", file: nil), notices: []).reply)
        }
        // The note is there when the unit starts.
        let manager = manager(
            "[ \"$4\" != start ] || cp \(folder.path)/runtime/ubd-device/scratch/running \(folder.path)/seen")
        let console = Recorder()
        let status = CommandLineTool.run(
            ["add", "-t", "null", "-q", "2", "--enable=scratch"], environment(broker, console, manager))
        #expect(status == 0 && console.output == ["/dev/ubdb3"])
        #expect(text(manager.file("scratch")).hasSuffix("\nNUMBER=any\nOPTIONS=-t null --queues 2\n"))
        #expect(
            calls.map { $0.split(separator: " ").suffix(2) } == [
                ["enable", "ubd@scratch.service"], ["start", "ubd@scratch.service"],
            ])
        #expect(text(folder.path + "/seen") == "3 43\n")
        guard case .add(let request)? = broker.received.first.flatMap({ try? BrokerCall($0) }) else {
            Issue.record("no add")
            return
        }
        #expect(request.name == "scratch")
        #expect(access(folder.path + "/runtime/ubd-device/scratch/running", F_OK) != 0)
        #expect(console.errors.contains { $0.contains("loginctl enable-linger") })
        var status2 = stat()
        #expect(stat(manager.file("scratch"), &status2) == 0 && status2.st_mode & 0o777 == 0o600)
        #expect(try FileManager.default.contentsOfDirectory(atPath: manager.folder) == ["scratch.conf"])
    }

    @Test("an add that fails leaves no file, and one whose name is taken adds nothing")
    func addFails() throws {
        let broker = FakeBroker { connection, _ in
            connection.send(InterfaceError.notPermitted(message: "no", remedy: "ask", rule: nil).reply)
        }
        let (manager, console) = (manager(), Recorder())
        let environment = environment(broker, console, manager)
        #expect(CommandLineTool.run(["add", "-t", "null", "--enable"], environment) == 3)
        #expect(access(manager.file("null"), F_OK) != 0 && calls.isEmpty)
        try DeviceFiles(manager: manager).create("null", "NUMBER=1\n")
        #expect(CommandLineTool.run(["add", "-t", "null", "--enable"], environment) == 2)
        #expect(text(manager.file("null")) == "NUMBER=1\n" && broker.received.count == 1)
    }

    @Test("a service manager that refuses, or is not there, does not take the device away")
    func addWithoutManager() throws {
        for (script, isThere) in [("echo no such unit >&2; exit 1", true), ("exit 0", false)] {
            let broker = FakeBroker { connection, _ in
                connection.send(AddReply.added(FakeBroker.device(target: "null", file: nil), notices: []).reply)
            }
            var manager = manager(script)
            if !isThere { manager.runtime = nil }
            let (console, name) = (Recorder(), isThere ? "a" : "b")
            let status = CommandLineTool.run(
                ["add", "-t", "null", "--enable", name], environment(broker, console, manager))
            #expect(status == 0 && console.output == ["/dev/ubdb0"])
            #expect(console.errors.contains { $0.contains(isThere ? "no such unit" : "no service manager") })
            #expect(access(manager.file(name), F_OK) == 0)
        }
    }

    // MARK: ubd enable

    private func loop(_ change: (inout Device) -> Void = { _ in }) -> Device {
        var device = FakeBroker.device(id: 3)
        device.sizeBytes = 1 << 20
        device.ioTimeout = 30
        device.file = folder.path + "/data.img"
        change(&device)
        return device
    }

    @Test("ubd enable -n writes what is known of the device, with its file from / on")
    func enable() throws {
        let image = folder.file("data.img", bytes: 3 << 20)
        let cases: [(Device, [String])] = [
            (loop { $0.sizeBytes = 3 << 20 }, []), (loop(), ["--size", "1048576"]),
            (
                loop { ($0.offset, $0.sizeBytes, $0.readOnly) = (1 << 20, 2 << 20, true) },
                ["--offset", "1048576", "--read-only"]
            ),
            (loop { ($0.partition, $0.offset) = (2, 1 << 20) }, ["--partition", "2"]),
            (
                loop {
                    ($0.sizeBytes, $0.blockSize, $0.queues, $0.depth, $0.recovery, $0.buffered) = (
                        3 << 20, 4096, 2, 64, .queue, true
                    )
                },
                ["--block-size", "4096", "--buffered", "--queues", "2", "--depth", "64", "--recovery", "queue"]
            ),
        ]
        for (number, (device, options)) in cases.enumerated() {
            let (console, manager) = (Recorder(), manager())
            let status = CommandLineTool.run(
                ["enable", "-n", "3", "n\(number)"], environment(listing([device]), console, manager))
            #expect(status == 0 && console.output == [manager.file("n\(number)")], "\(console.errors)")
            let read = DeviceDescription(file: text(manager.file("n\(number)")))
            #expect(read.number == "3" && read.options == ["-t", "loop", "--file", image] + options)
            #expect(read.problem == nil)
        }
    }

    @Test("ubd enable -n refuses what it does not know, and what is not the caller's")
    func enableRefuses() throws {
        _ = folder.file("data.img", bytes: 1 << 20)
        let cases: [(Device, [String], Int32)] = [
            (loop { $0.file = "data.img" }, [], 2), (loop { $0.owner = 0 }, [], 3), (loop { $0.target = "nbd" }, [], 2),
            (loop { $0.target = "crypt" }, [], 2), (loop { $0.target = "overlay" }, [], 2),
            (loop { $0.target = "fault" }, [], 2), (loop { $0.file = "/no/where.img" }, [], 2),
            (loop(), ["a/b"], 2), (FakeBroker.device(id: 3, target: "null", file: nil), ["-f", "x"], 2),
            (loop(), ["--key-file", "x"], 2),
        ]
        for (device, more, wanted) in cases {
            let (console, manager) = (Recorder(), manager())
            let status = CommandLineTool.run(
                ["enable", "-n", "3"] + more, environment(listing([device]), console, manager))
            #expect(status == wanted, "\(console.errors)")
            #expect(calls.isEmpty && access(manager.folder, F_OK) != 0)
        }
    }

    @Test("ubd enable of a file that was written by hand starts its unit, and says what is wrong with it before")
    func enableFile() throws {
        let manager = manager()
        try DeviceFiles(manager: manager).create("mine", "NUMBER=3\nOPTIONS=-t null\n")
        try DeviceFiles(manager: manager).create("wrong", "NUMBER=3\nOPTIONS=-t\n")
        let broker = FakeBroker(connections: 0) { _, _ in }
        for (name, wanted) in [("mine", Int32(0)), ("wrong", 2), ("none", 1)] {
            let console = Recorder()
            #expect(CommandLineTool.run(["enable", name], environment(broker, console, manager)) == wanted)
        }
        #expect(calls.allSatisfy { $0.hasSuffix("ubd@mine.service") } && calls.count == 2)
    }

    @Test(
        "a unit that is active without its device is started anew; one with another device is told",
        arguments: [true, false])
    func activeUnit(_ isThere: Bool) throws {
        // A start of an active unit does nothing; a restart takes the device of the note.
        let notes = folder.path + "/runtime/ubd-device/mine"
        let manager = manager("[ \"$4\" != restart ] || [ ! -e \(notes)/running ] || cp \(notes)/running \(notes)/made")
        _ = folder.file("data.img", bytes: 1 << 20)
        let old = FakeBroker.device(id: 7)
        let broker = listing(isThere ? [loop(), old] : [loop()], connections: 4)
        let console = Recorder()
        let environment = environment(broker, console, manager)
        for path in [folder.path + "/runtime/ubd-device", notes] { mkdir(path, 0o700) }
        try Data("7 47\n".utf8).write(to: URL(fileURLWithPath: notes + "/made"))
        let status = CommandLineTool.run(["enable", "-n", "3", "mine"], environment)
        let restarted = calls.contains { $0.hasSuffix("restart ubd@mine.service") }
        #expect(restarted == !isThere && (status == 0) == !isThere, "\(console.errors) \(calls)")
        #expect(text(notes + "/made") == (isThere ? "7 47\n" : "3 43\n"))
        #expect(isThere == console.errors.contains { $0.contains("is active with another device, ubdb7") })
    }

    // MARK: ubd disable, ubd list --enabled

    private let shown =
        "printf 'Id=ubd@mine.service\\nActiveState=active\\nUnitFileState=enabled\\n\\nId=ubd@other.service\\nActiveState=failed\\nUnitFileState=\\n'"

    @Test("ubd disable leaves device and file, and says so")
    func disable() throws {
        let manager = manager("[ \"$4\" != show ] || \(shown)")
        try DeviceFiles(manager: manager).create("mine", "NUMBER=3\nOPTIONS=-t null\n")
        let (console, broker) = (Recorder(), FakeBroker(connections: 0) { _, _ in })
        #expect(CommandLineTool.run(["disable", "mine"], environment(broker, console, manager)) == 0)
        #expect(console.output == ["mine: disabled"] && calls.last?.hasSuffix("disable ubd@mine.service") == true)
        #expect(console.errors.contains { $0.contains("systemctl --user stop ubd@mine.service") })
        #expect(access(manager.file("mine"), F_OK) == 0)
        #expect(CommandLineTool.run(["disable", "nothing"], environment(broker, Recorder(), manager)) == 4)
    }

    @Test("ubd list --enabled shows each file with the state of its unit, and the device that the unit has")
    func list() throws {
        let manager = manager("[ \"$4\" != show ] || \(shown)")
        try DeviceFiles(manager: manager).create("mine", "NUMBER=any\nOPTIONS=-t loop -f /srv/x\n")
        try DeviceFiles(manager: manager).create("other", "NUMBER=9\nOPTIONS=-t\n")
        let notes = folder.path + "/runtime/ubd-device/mine"
        try FileManager.default.createDirectory(atPath: notes, withIntermediateDirectories: true)
        for (generation, there) in [("43", "ubdb3"), ("44", "-")] {
            try Data("3 \(generation)\n".utf8).write(to: URL(fileURLWithPath: notes + "/made"))
            let console = Recorder()
            #expect(CommandLineTool.run(["list", "--enabled"], environment(listing([loop()]), console, manager)) == 0)
            let words = console.output.map { $0.split(separator: " ").map(String.init) }
            #expect(words.count == 3)
            #expect(words[1].prefix(6) == ["mine", "enabled,", "active", Substring(there).description, "any", "loop"])
            #expect(words[2].prefix(5) == ["other", "disabled,", "failed", "-", "9"])
            #expect(console.output[2].hasSuffix("OPTIONS are not those of 'ubd add'"))
        }
        let console = Recorder()
        var alone = environment(listing([]), console, manager)
        alone.socketPath = folder.path + "/nobody"
        #expect(CommandLineTool.run(["list", "--enabled", "--json"], alone) == 0)
        let json = try JSONSerialization.jsonObject(with: Data(console.output.joined().utf8)) as? [[String: Any]]
        let first = try #require(json?.first)
        #expect(first["name"] as? String == "mine" && first["source"] as? String == "/srv/x")
        #expect(first["enabled"] as? String == "enabled" && first["present"] == nil && first["device"] == nil)
        #expect(!console.errors.isEmpty)
    }
}
