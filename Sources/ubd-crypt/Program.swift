import CShims
import Dialing
import Glibc
import Numbers
import Programs
import SystemCalls

/// `ubd-crypt`: opens a LUKS volume for `ubd`, as the user, and hands over the volume key in a sealed memfd.
public func runCrypt() -> Int32 {
    resetInheritedSignals()
    var count: Int32 = 0
    let all = ubd_arguments(&count)
    let words = (1..<max(Int(count), 1)).compactMap { index in
        all?[index].map { Array(UnsafeRawBufferPointer(start: $0, count: strlen($0))) }
    }
    if let answer = answer(words.first.map { String(decoding: $0, as: UTF8.self) }) {
        return writeStandard(answer.text + "\n", to: answer.status == 0 ? STDOUT_FILENO : STDERR_FILENO) == 0
            ? answer.status : 1
    }
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

/// What to print instead, when this was not started by `ubd`.
private func answer(_ word: String?) -> (text: String, status: Int32)? {
    switch word {
    case "--version": return ("ubd-crypt \(UBDVersion.text)", 0)
    case "--help", "-h":
        let text = """
            usage: ubd-crypt [--help | --version]
            Opens LUKS volumes for 'ubd add -t crypt', which starts it and tells it what to do; see ubd-crypt(8).
            """
        return (text, 0)
    default:
        guard (try? option(dialDescriptor, SO_TYPE)) != Int32(SOCK_SEQPACKET.rawValue) else { return nil }
        return ("ubd-crypt: this program is started by 'ubd add -t crypt'; see 'ubd add --help'", 2)
    }
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
