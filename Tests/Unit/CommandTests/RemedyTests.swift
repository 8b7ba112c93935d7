import BrokerInterface
import Foundation
import Glibc
import Targets
import Testing

@testable import ubd

/// Each remedy of `ubd` fits the device: its target, its state, how it was added.
@Suite("What ubd says is to be done")
struct RemedyTests {
    private static let states: [DeviceState] = [
        .adding, .starting, .live, .recovering, .deleting, .unmanaged, .stuck, .failed,
    ]

    private static var devices: [Device] {
        [("null", nil), ("loop", "1.img")].flatMap { target, file in
            states.flatMap { state in
                RecoveryMode.allCases.map { recovery in
                    var device = FakeBroker.device(target: target, state: state, file: file)
                    device.recovery = recovery
                    return device
                }
            }
        }
    }

    /// Each piece of advice, and to which devices it applies.
    private static let advice: [(text: String, applies: @Sendable (Device) -> Bool)] = [
        ("its file answers", { $0.target == "loop" && $0.state != .failed }),
        ("repair its file", { $0.target == "loop" && ![.failed, .recovering].contains($0.state) }),
        ("ubd recover", { $0.target == "loop" && $0.state == .recovering }),
        ("'ubd upgrade", { $0.recovery != .none && ($0.recovery == .reissue || !$0.mode.isBatch) }),
        ("make one with sfdisk", { $0.target == "loop" && !$0.readOnly && [.live, .unmanaged].contains($0.state) }),
        ("try again", { $0.state != .failed }),
    ]

    private func expectToApply(_ remedy: String, _ device: Device) {
        for (text, applies) in Self.advice where remedy.contains(text) {
            #expect(applies(device), "\(device.target), \(device.state), \(device.recovery): \(remedy)")
        }
    }

    @Test("applies to every target in every state: flush, partition table, upgrade")
    func ofDevices() {
        for var device in Self.devices {
            let (wait, mend) = DeleteCommand.remedies(device)
            expectToApply(wait, device)
            expectToApply(mend, device)
            #expect(device.state == .failed ? wait + mend == "" : wait.hasSuffix(", or ") && mend.hasSuffix(", or "))
            for readOnly in [false, true] {
                device.readOnly = readOnly
                expectToApply(PartitionsCommand.remedy(withoutTable: device), device)
            }
            for mode in DataMode.allCases {
                device.mode = mode
                expectToApply(ListCommand.upgrade(device), device)
            }
        }
    }

    @Test("a device that does not wait for its file is refused by the broker, whatever is on record of its file")
    func recover() {
        for device in Self.devices where device.state != .recovering {
            let refusal = InterfaceError.failed(
                message: "/dev/ubdb0 does not wait for its file: it is \(device.state)", remedy: "delete it",
                step: "state",
                errno: nil)
            let broker = FakeBroker(connections: 2) { connection, call in
                if case .list = try? BrokerCall(call) {
                    connection.send(.init(parameters: ListReply(devices: [device]).json))
                } else {
                    connection.send(refusal.reply)
                }
            }
            let console = Recorder()
            #expect(CommandLineTool.run(["recover", "-n", "0"], broker.environment(console)) == 1)
            #expect(console.errors == ["ubd: \(refusal.message); delete it"])
        }
    }

    @Test("a file that is not there: what helps depends on where it is named")
    func missingFile() {
        func remedy(_ path: String) -> String {
            do {
                _ = try BackingFile.open(path, readOnly: false, options: DeviceOptions())
                return "opened"
            } catch { return error.remedy }
        }
        #expect(remedy("/nowhere/1.img") == "create it first, as in 'truncate -s 1G FILE'")
        // truncate cannot create a disk, and a file in /dev is no disk.
        #expect(remedy("/dev/no-such-disk") == "'lsblk' lists the disks")
        #expect(remedy("/dev/null") == "give a regular file or a block device to --file")
    }

    @Test("sizes: what is valid is said, with the option and the text that were typed")
    func sizes() {
        for (option, text) in [
            ("--size", "1.5G"), ("--offset", "-1"), ("--block-size", "4KB"), ("--max-io-size", "1X"),
        ] {
            let console = Recorder()
            let broker = FakeBroker(connections: 0) { _, _ in }
            let status = CommandLineTool.run(["add", "-t", "null", "\(option)=\(text)"], broker.environment(console))
            #expect(status == 2)
            #expect(
                console.errors == [
                    "ubd: \(option) can not be '\(text)'; give bytes, or a whole number with K, M, G or T "
                        + "(powers of 1024), as in 1536M for one and a half G"
                ])
        }
    }
}

@Suite("A file name that is not UTF-8")
struct FileNameTests {
    @Test("is opened by its bytes, and shown with them")
    func opens() throws {
        let folder = TemporaryFolder()
        let bytes = Array(folder.path.utf8) + Array("/d\u{E9}".utf8) + [0xFF, 0xE4] + Array(".img".utf8)
        let fd = open(bytes.map { CChar(bitPattern: $0) } + [0], O_CREAT | O_RDWR | O_CLOEXEC, 0o644)
        try #require(fd >= 0)
        #expect(ftruncate(fd, 4096) == 0)
        close(fd)
        let path = TypedText.text(bytes)
        _ = try BackingFile.open(path, readOnly: false, options: DeviceOptions())
        #expect(AddCommand.label(path) == folder.path + "/d\\xC3\\xA9\\xFF\\xE4.img")
        // From the program's arguments on; only the broker is missing.
        let script = "exec \"$0\" add --json -t loop -f \"$(printf '\(folder.path)/d\\303\\251\\377\\344.img')\""
        let result = try Program.run([], socket: "/nowhere/socket", shell: script)
        #expect(result.status == 6)
        #expect(result.errors.contains("no broker at /nowhere/socket"))
        let missing = try Program.run(
            [], socket: "/nowhere", shell: script.replacingOccurrences(of: "344", with: "345"))
        #expect(missing.errors.contains("/d\\xC3\\xA9\\xFF\\xE5.img: No such file or directory; create it first"))
        #expect(missing.output.contains("\\\\xE5.img"))
    }

    @Test("keeps every byte of every word, also of one that looks like what stands for a byte")
    func roundTrip() {
        var words = (0...255).map { [UInt8($0)] }
        words += [Array("ä".utf8), Array("\u{10FF80}".utf8), Array("x\u{10FFFF}".utf8), [0xC3], Array("a\u{301}".utf8)]
        for word in words where word != [0] {
            #expect(TypedText.text(word).systemPath == word.map { CChar(bitPattern: $0) } + [0])
        }
        #expect(TypedText.text(Array("ä".utf8)) == "ä")
        #expect("\u{10FF80}x".readable == "\\x80x")
    }
}
