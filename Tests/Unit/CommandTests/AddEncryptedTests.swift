import BrokerInterface
import Dialing
import Foundation
import Forked
import Glibc
import Synchronization
import SystemCalls
import Testing
import Varlink

@testable import ubd

/// Volumes of the real cryptsetup.
enum RealVolume {
    /// A volume of 2 MiB or more behind its header, whose passphrase is in a file; returns both paths.
    static func make(
        in folder: TemporaryFolder, _ name: String, _ arguments: [String] = small
    ) throws -> (volume: String, key: String) {
        let (path, key) = (folder.path + "/" + name, folder.path + "/key")
        try Data("correct horse".utf8).write(to: URL(fileURLWithPath: key))
        try Data(count: 4 << 20).write(to: URL(fileURLWithPath: path))
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/sbin/cryptsetup")
        process.arguments =
            ["luksFormat", "--batch-mode", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"] + arguments
            + ["--key-file", key, path]
        process.standardInput = FileHandle.nullDevice
        try process.run()
        process.waitUntilExit()
        try #require(process.terminationStatus == 0)
        return (path, key)
    }

    static let small = ["--luks2-metadata-size", "16k", "--luks2-keyslots-size", "256k"]
}

/// `ubd add -t crypt` with the real ubd-crypt and volumes of the real cryptsetup; the broker alone is played.
@Suite("ubd add -t crypt")
struct AddEncryptedTests {
    /// What the broker was sent.
    private struct Taken {
        var names: [String] = []
        var key: [UInt8] = []
        var seals: Int32 = 0
    }

    private let folder = TemporaryFolder()

    private func volume(_ arguments: [String] = []) throws -> (volume: String, key: String) {
        try RealVolume.make(in: folder, "disk.luks", arguments)
    }

    private static let small = RealVolume.small

    @Test(
        "opens the volume as the user, and hands over its file, its key in a sealed file, and what the header says",
        arguments: [
            (["--sector-size", "4096", "--key-size", "256"] + small, 4096, 32),
            (["--sector-size", "512"] + small, 512, 64),
            (["--type", "luks1", "--key-size", "512"], 512, 64),
        ])
    func adds(arguments: [String], sector: Int, keyBytes: Int) throws {
        let (path, key) = try volume(arguments)
        let taken = Mutex(Taken())
        let broker = FakeBroker { connection, _ in
            let files = connection.askForFiles(2)
            taken.withLock { taken in
                taken.names = files.map { linkTarget("/proc/self/fd/\($0)") ?? "" }
                guard files.count == 2 else { return }
                var bytes = [UInt8](repeating: 0, count: 65)
                let count = pread(files[1], &bytes, bytes.count, 0)
                taken.key = Array(bytes.prefix(max(0, count)))
                taken.seals = fcntl(files[1], F_GET_SEALS)
            }
            for file in files { close(file) }
            connection.send(AddReply.added(FakeBroker.device(target: "crypt", file: path), notices: []).reply)
        }
        let console = Recorder()
        let status = CommandLineTool.run(
            ["add", "-t", "crypt", "-f", path, "--key-file", key], broker.environment(console))
        #expect(status == 0, "\(console.errors)")
        #expect(broker.finish())
        let request = try AddRequest(parameters: #require(broker.received.first).parameters)
        let options = Dictionary(uniqueKeysWithValues: request.options.map { ($0.name, $0.value) })
        #expect(options["block-size"] == String(sector) && options["first-sector"] == "0")
        #expect((options["offset"].flatMap { Int($0) } ?? 0) >= 4096 && options["size"] == nil)
        let sent = taken.withLock { $0 }
        #expect(sent.names.count == 2 && sent.names[0] == path && sent.names[1].hasPrefix("/memfd:ubd-key"))
        #expect(sent.key.count == keyBytes && sent.key.contains { $0 != 0 })
        #expect(sent.seals == F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
        // Nothing of the key is in what the broker reads.
        let text = try #require(broker.received.first).parameters.text
        #expect(!text.contains(sent.key.prefix(8).map { String(format: "%02x", $0) }.joined()))
        #expect(UInt64(options["key-mark"] ?? "") != nil)
    }

    @Test("asks no broker when the volume does not open, and says why in one line with a remedy")
    func refusals() throws {
        let (path, key) = try volume(Self.small)
        let (wrong, plain) = (folder.path + "/wrong", folder.path + "/plain")
        try Data("incorrect horse".utf8).write(to: URL(fileURLWithPath: wrong))
        try Data(count: 1 << 20).write(to: URL(fileURLWithPath: plain))
        let cases: [([String], Int32, String)] = [
            (["-f", path, "--key-file", wrong], 3, "no key slot of \(path) opens with this passphrase or key"),
            (["-f", plain, "--key-file", key], 2, "\(plain) has no LUKS header"),
            (["-f", path, "--key-file", folder.path + "/none"], 2, "none: No such file or directory"),
            (["-f", folder.path + "/none", "--key-file", key], 2, "none"),
            (["-f", folder.path, "--key-file", key], 2, "is a directory"),
            (["-f", path, "--key-file", key, "--header", plain], 2, "has no LUKS header"),
            (["-f", path, "--key-file", key, "--offset", "512"], 2, "--offset would not be used"),
            (["-f", path, "--key-file", key, "--key-fd", "0"], 2, "both --key-file and --key-fd"),
            (["-f", path, "--key-fd", "250"], 2, "--key-fd can not be '250': no such file is open"),
            (["-f", path, "--key-fd", "x"], 2, "--key-fd"),
        ]
        for (arguments, status, text) in cases {
            let console = Recorder()
            let environment = CommandEnvironment(
                console: console, socketPath: "/nowhere/socket", host: FakeMachine.healthy, executable: Program.path)
            #expect(CommandLineTool.run(["add", "-t", "crypt"] + arguments, environment) == status, "\(arguments)")
            let said = console.errors.joined(separator: "\n")
            #expect(said.contains(text), "\(arguments): \(said)")
        }
    }

    @Test(
        "a detached header is no volume: a disk that begins with it would lose the key slots at the first write",
        arguments: [small, ["--type", "luks1"]])
    func detached(arguments: [String]) throws {
        let header = folder.path + "/header"
        let (path, key) = try volume(arguments + ["--header", header])
        try FileManager.default.linkItem(atPath: header, toPath: folder.path + "/same")
        func add(_ files: [String]) throws -> (status: Int32, errors: String) {
            let result = try Program.run(
                ["add", "-t", "crypt", "--key-file", key] + files, socket: "/nowhere/socket",
                shell: "exec \"$0\" \"$@\"")
            return (result.status, result.errors)
        }
        for files in [
            ["-f", header], ["-f", header, "--header", header], ["-f", folder.path + "/same", "--header", header],
        ] {
            let (status, errors) = try add(files)
            #expect(status == 2 && errors.contains("has a detached header"), "\(files): \(errors)")
            #expect(errors.contains("with --header"), "\(files): \(errors)")
        }
        // With its own file it comes to the broker, which is not there.
        #expect(try add(["-f", path, "--header", header]).status == 6)
    }

    @Test("takes the key from the descriptor that was named, whatever its number", arguments: [0, 3, 4, 5, 6, 20])
    func descriptors(number: Int) throws {
        let (path, key) = try volume(Self.small)
        let wrong = folder.path + "/wrong"
        try Data("incorrect horse".utf8).write(to: URL(fileURLWithPath: wrong))
        // Only with the right key it comes to the broker, which is not there.
        for (file, status) in [(key, 6), (wrong, 3)] as [(String, Int32)] {
            let result = try Program.run(
                ["add", "-t", "crypt", "-f", path, "--key-fd", String(number)], socket: "/nowhere/socket",
                shell: "exec bash -c 'exec \(number)<\(file); exec \"$0\" \"$@\"' \"$0\" \"$@\"")
            #expect(result.status == status, "\(result)")
        }
    }

    @Test("says what to do when the memory that Argon2 needs is not to be had")
    func memory() throws {
        let (path, key) = try volume(
            Self.small + [
                "--pbkdf", "argon2id", "--pbkdf-memory", "524288", "--pbkdf-force-iterations", "4", "--pbkdf-parallel",
                "1",
            ])
        let result = try Program.run(
            ["add", "-t", "crypt", "-f", path, "--key-file", key], socket: "/nowhere/socket",
            shell: "ulimit -v 450000; exec \"$0\" \"$@\"")
        #expect(result.status == 7 && result.errors.contains("not enough memory"), "\(result)")
        #expect(result.errors.contains("luksDump"), "\(result)")
    }

    @Test("its messages come out as they went in, and no other bytes are one")
    func messages() throws {
        let volumes = [
            UnlockedVolume(offset: 1 << 20, size: nil, sectorSize: 4096, firstSector: 0, keyMark: 1 << 62),
            UnlockedVolume(offset: 0, size: 512, sectorSize: 512, firstSector: 77, keyMark: 0),
        ]
        for volume in volumes {
            #expect(try UnlockReply(bytes: UnlockReply.unlocked(volume).bytes) == .unlocked(volume))
        }
        let failure = DialFailure(.refused, "no key slot", remedy: "give another one")
        #expect(try UnlockReply(bytes: UnlockReply.failed(failure).bytes) == .failed(failure))
        for text in ["", "{}", "[]", #"{"offset":"1"}"#, #"{"offset":1,"sectorSize":"512","firstSector":"0"}"#] {
            #expect(throws: BrokenDialMessage.self) { _ = try UnlockReply(bytes: Array(text.utf8)) }
        }
    }
}
