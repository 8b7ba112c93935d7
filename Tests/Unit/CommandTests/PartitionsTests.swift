import BrokerInterface
import Foundation
import Testing
import Varlink

@testable import ubd

@Suite("ubd partitions")
struct PartitionsTests {
    private static let printed = #"""
        {
           "partitiontable": {
              "label":"gpt", "id":"0A", "device":"/dev/ublkb0", "unit":"sectors", "firstlba":34, "lastlba":262110,
              "sectorsize":512,
              "partitions": [
                 {"node":"/dev/ublkb0p1", "start":2048, "size":4096, "type":"0FC63DAF-8483", "uuid":"X", "name":"ro\u001b[31mot"},
                 {"node":"/dev/ublkb0p12", "start":8192, "size":1, "type":"EF"}
              ]
           }
        }
        """#

    /// Runs the command on a device whose node is that file.
    private func run(
        node: String, sfdisk: String, _ arguments: [String] = [], uid: UInt32 = 1000
    ) -> (status: Int32, console: Recorder) {
        let console = Recorder()
        let broker = FakeBroker(connections: 1) { connection, _ in
            connection.send(Reply(parameters: ListReply(devices: [FakeBroker.device(node: node)]).json))
        }
        var environment = broker.environment(console, host: FakeMachine(uid: uid))
        environment.sfdisk = sfdisk
        let status = CommandLineTool.run(["partitions", "-n", "0"] + arguments, environment)
        _ = broker.finish()
        return (status, console)
    }

    @Test("reads what sfdisk prints: offsets and sizes become bytes, names only text")
    func table() throws {
        let table = try #require(SfdiskTable(sfdisk: Self.printed, node: "/dev/ublkb0"))
        #expect(table.label == "gpt")
        #expect(table.partitions.map(\.number) == [1, 12])
        #expect(table.partitions.map(\.offset) == [1 << 20, 4 << 20])
        #expect(table.partitions.map(\.size) == [2 << 20, 512])
        #expect(table.partitions.map(\.name) == ["ro\u{1b}[31mot", nil])
    }

    @Test(
        "takes nothing that makes no sense",
        arguments: [
            "", "{}", "[]", #"{"partitiontable":{"label":"gpt","unit":"bytes"}}"#,
            #"{"partitiontable":{"label":"gpt","unit":"sectors","partitions":{}}}"#,
            #"{"partitiontable":{"label":"gpt","unit":"sectors","partitions":[{"node":"/dev/sda1","start":1,"size":1,"type":"x"}]}}"#,
            #"{"partitiontable":{"label":"gpt","unit":"sectors","partitions":[{"node":"/dev/ublkb0p1","start":-1,"size":1,"type":"x"}]}}"#,
            #"{"partitiontable":{"label":"gpt","unit":"sectors","partitions":[{"node":"/dev/ublkb0p1","start":9223372036854775807,"size":1,"type":"x"}]}}"#,
        ])
    func nonsense(_ text: String) {
        #expect(SfdiskTable(sfdisk: text, node: "/dev/ublkb0") == nil)
    }

    @Test("without sfdisk it says which package has it")
    func missing() {
        let (status, console) = run(node: "/dev/null", sfdisk: "/nowhere/sfdisk")
        #expect(status == ExitStatus.hostLacksSomething.rawValue)
        #expect(console.errors.joined().contains("install fdisk"))
    }

    /// A disk of 1 MiB whose first block is given, and its name.
    private func disk(_ block: [UInt8]) throws -> String {
        let path = FileManager.default.temporaryDirectory.appending(path: "ubd-disk-\(UUID())").path
        try Data(block + [UInt8](repeating: 0, count: (1 << 20) - block.count)).write(to: URL(filePath: path))
        return path
    }

    private static let realOne = "/usr/sbin/sfdisk"

    @Test(
        "shows a table as sfdisk reads it, as columns and as JSON",
        .enabled(if: access(realOne, X_OK) == 0, "sfdisk is not installed here"))
    func real() throws {
        // An MBR with one Linux partition of 1000 sectors from sector 64 on, and its signature.
        var block = [UInt8](repeating: 0, count: 512)
        block.replaceSubrange(446..<462, with: [0, 0, 0, 0, 0x83, 0, 0, 0, 64, 0, 0, 0, 0xE8, 3, 0, 0])
        block[510] = 0x55
        block[511] = 0xAA
        let path = try disk(block)
        defer { unlink(path) }
        let (status, console) = run(node: path, sfdisk: Self.realOne)
        #expect(status == 0)
        let words = console.output.map { $0.split(separator: " ").map(String.init) }
        #expect(words.count == 2)
        #expect(words.last == ["1", "32768", "512000", "500", "KiB", "83"])
        let json = run(node: path, sfdisk: Self.realOne, ["--json"]).console.output.joined()
        #expect(json.contains("\"label\": \"dos\"") && json.contains("\"offset\": 32768"))
    }

    @Test("has the disk read as its owner when root asks: no right of root's is left to the program that parses it")
    func asOwner() throws {
        // The program prints its user instead of a table.
        let program = FileManager.default.temporaryDirectory.appending(path: "ubd-sfdisk-\(UUID())").path
        let seen = program + ".seen"
        try Data("#!/bin/sh\ngrep -E '^(Uid|Gid|Groups|CapEff)' /proc/self/status >\(seen)\n".utf8)
            .write(to: URL(filePath: program))
        try Data().write(to: URL(filePath: seen))
        chmod(program, 0o755)
        chmod(seen, 0o666)
        defer {
            unlink(program)
            unlink(seen)
        }
        let (status, console) = run(node: "/dev/null", sfdisk: program, uid: 0)
        let text = try String(contentsOfFile: seen, encoding: .utf8)
        if geteuid() == 0 {
            let lines = text.split(separator: "\n").map { $0.split { $0 == "\t" || $0 == " " } }
            #expect(
                lines == [
                    ["Uid:", "1000", "1000", "1000", "1000"], ["Gid:", "65534", "65534", "65534", "65534"], ["Groups:"],
                    ["CapEff:", "0000000000000000"],
                ])
            #expect(status == ExitStatus.failed.rawValue)
        } else {
            // Only root can become another user, so no program may have run.
            #expect(text.isEmpty && status == ExitStatus.notPermitted.rawValue)
            #expect(console.errors.joined().contains("run it as its owner, uid 1000"))
        }
    }

    @Test("says when there is no table", .enabled(if: access(realOne, X_OK) == 0, "sfdisk is not installed here"))
    func none() throws {
        let path = try disk([])
        defer { unlink(path) }
        let (status, console) = run(node: path, sfdisk: Self.realOne)
        #expect(status == ExitStatus.failed.rawValue)
        #expect(console.errors.joined().contains("no partition table"))
    }

    @Test("does not take a disk that cannot be read for one without a table, which its user would make then")
    func unreadable() throws {
        let (status, console) = run(node: "/nowhere/ublkb0", sfdisk: "/bin/false")
        #expect(status == ExitStatus.failed.rawValue)
        #expect(
            console.errors == [
                "ubd: /nowhere/ublkb0 could not be read: No such file or directory; 'ubd list -n 0' says what the device does"
            ])
        // A directory cannot be read as a file.
        #expect(
            run(node: "/", sfdisk: "/bin/false").console.errors.first?.contains("could not be read: Is a directory")
                == true)
    }

    @Test("tells of a sfdisk that fails in another way")
    func brokenHelper() throws {
        let folder = TemporaryFolder()
        let node = folder.file("disk", bytes: 1 << 16)
        for (script, words) in [("exit 3", "with status 3"), ("kill -9 $$", "by a signal")] {
            let path = folder.path + "/sfdisk"
            try Data("#!/bin/sh\n\(script)\n".utf8).write(to: URL(filePath: path))
            chmod(path, 0o755)
            let said = run(node: node, sfdisk: path).console.errors.joined()
            #expect(said.hasPrefix("ubd: sfdisk ended \(words); "))
        }
    }

    /// The first bytes of a disk with a GPT: the protective partition, of type EE, and the header at byte `sector`.
    private func protected(header sector: Int?) -> [UInt8] {
        var bytes = sector.map { ContentSectorsTests.header(sector: $0) } ?? [UInt8](repeating: 0, count: 64 << 10)
        bytes.replaceSubrange(
            446..<462, with: [0, 0, 2, 0, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF])
        bytes.replaceSubrange(510..<512, with: [0x55, 0xAA])
        return bytes
    }

    @Test(
        "never shows the protective partition of a GPT: it says that the table is of other sectors, or damaged",
        .enabled(if: access(realOne, X_OK) == 0, "sfdisk is not installed here"),
        arguments: [4096, 512, nil] as [Int?])
    func protective(_ sector: Int?) throws {
        let path = try disk(protected(header: sector))
        defer { unlink(path) }
        let (status, console) = run(node: path, sfdisk: Self.realOne)
        #expect(status == ExitStatus.failed.rawValue)
        #expect(console.output == [])
        let said = console.errors.joined()
        if sector == 4096 {
            #expect(
                said.contains(
                    "has a partition table (GPT) of 4096-byte sectors, which cannot be read from its blocks of 512"))
            #expect(said.contains("--block-size 4096"))
        } else {
            #expect(said.contains("a GPT that is damaged or gone; 'sgdisk -v \(path)'"))
        }
    }

    @Test("shows the partitions beside a protective one, and says that there is a GPT")
    func hybrid() throws {
        let text = #"""
            {"partitiontable":{"label":"dos","unit":"sectors","sectorsize":512,"partitions":[
            {"node":"/dev/ublkb0p1","start":1,"size":63,"type":"ee"},
            {"node":"/dev/ublkb0p2","start":64,"size":1000,"type":"83"}]}}
            """#
        let table = try #require(SfdiskTable(sfdisk: text, node: "/dev/ublkb0"))
        #expect(table.hidesGPT)
        #expect(table.partitions.map(\.number) == [2])
    }
}
