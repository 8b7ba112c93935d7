import Dialing
import Glibc
import Programs
import SystemCalls

/// `ubd-crypt`: opens a LUKS volume for `ubd`, as the user, and hands over the volume key in a sealed memfd.
public func runCrypt() -> Int32 {
    var status: Int32 = 0
    guard let words = HelperProgram.words(of: "ubd-crypt", for: "Opens LUKS volumes", target: "crypt", status: &status)
    else { return status }
    // Passphrase and key never reach a core dump.
    var none = rlimit(rlim_cur: 0, rlim_max: 0)
    setrlimit(__rlimit_resource_t(RLIMIT_CORE.rawValue), &none)
    let channel = FileDescriptor(owning: dialDescriptor)
    do throws(DialFailure) {
        let arguments = try Arguments(words)
        let volume = try LUKSVolume(file: arguments.file, header: arguments.header)
        var facts = try volume.facts()
        let key = try arguments.source.unlock(volume)
        facts.keyMark = key.mark
        return tell(.unlocked(facts), channel, files: [key.file.raw]) ? 0 : 1
    } catch {
        return tell(.failed(error), channel, files: []) ? 1 : 2
    }
}

private func tell(_ reply: UnlockReply, _ channel: borrowing FileDescriptor, files: [Int32]) -> Bool {
    (try? send(channel.raw, reply.bytes, files: files)) != nil
}

/// The arguments, as `ubd` gives them.
private struct Arguments {
    /// Paths, as bytes that end with a NUL.
    var file: [CChar] = []
    /// nil: in the file itself.
    var header: [CChar]?
    /// Where the passphrase comes from.
    var source = PassphraseSource.person

    init(_ words: [[UInt8]]) throws(DialFailure) {
        var rest = words[...]
        while let name = rest.popFirst() {
            let name = String(decoding: name, as: UTF8.self)
            if name == "--key-on-4" {
                source = .descriptor(4)
                continue
            }
            guard let value = rest.popFirst() else { throw Self.wrong(name) }
            let path = value.map { CChar(bitPattern: $0) } + [0]
            switch name {
            case "--file": file = path
            case "--header": header = path
            case "--key-file": source = .file(path)
            default: throw Self.wrong(name)
            }
        }
        guard !file.isEmpty else { throw Self.wrong("--file") }
    }

    private static func wrong(_ name: String) -> DialFailure {
        DialFailure(.usage, "the argument '\(name)' is unknown, or lacks a value", remedy: "let ubd start this program")
    }
}
