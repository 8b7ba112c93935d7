import Glibc
import Ring
import SystemCalls
import WorkerProtocol

/// How a worker ends.
enum WorkerExit {
    /// The driver has taken all requests back: the device is stopped.
    static let done: Int32 = 0
    /// It could not start serving, and has said why.
    static let failed: Int32 = 1
    /// Wrong use: not started by the broker.
    static let usage: Int32 = 2
    /// The ring or the driver refused to go on; a replacement starts anew.
    static let ringFailed: Int32 = 3
    /// The broker said something that has no meaning at that time.
    static let protocolViolation: Int32 = 4
}

/// The worker's end of the control socket. Only read(2) and write(2): that is what the filter of the loop leaves.
package enum Control {
    /// Says something; a broker that is gone is no reason to stop.
    static func say(_ message: WorkerMessage) {
        say(message.encoded())
    }

    /// The same for a message that was encoded while memory could still grow.
    package static func say(_ bytes: [UInt8]) {
        _ = bytes.withUnsafeBytes { write(WorkerDescriptor.control, $0.baseAddress, $0.count) }
    }

    /// Says why it can't be done, and ends the process.
    package static func fail(_ failure: WorkerFailure) -> Never {
        say(.failed(failure))
        _exit(WorkerExit.failed)
    }

    /// Takes the launch message, whose files land on fixed numbers.
    static func receiveLaunch() throws(WorkerFailure) -> LaunchMessage {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: LaunchMessage.longest, alignment: 8)
        defer { buffer.deallocate() }
        let expected = WorkerDescriptor.launchFiles
        do {
            let received = try receiveWithFiles(
                WorkerDescriptor.control, into: buffer, maximum: expected.count, peek: false)
            guard received.files == expected else {
                throw WorkerFailure(.launchMessage, detail: UInt64(received.files.count))
            }
            guard let launch = LaunchMessage(decoding: Array(buffer[..<received.bytes])) else {
                throw WorkerFailure(.launchMessage, errno: EBADMSG)
            }
            return launch
        } catch let error as SystemError {
            throw WorkerFailure(.launchMessage, errno: error.errno)
        } catch let failure as WorkerFailure {
            throw failure
        } catch {
            throw WorkerFailure(.launchMessage)
        }
    }

    /// Reads the walls' description and closes it, so that its number is free for the client's files.
    static func readBundle() throws(WorkerFailure) -> SandboxBundle {
        let file = FileDescriptor(owning: WorkerDescriptor.bundle)
        let bytes: [UInt8]
        do {
            // All workers of a target share this open file, so its offset means nothing.
            bytes = try file.readWhole(limit: SandboxBundle.longest)
        } catch {
            throw WorkerFailure(.launchMessage, errno: error.errno, detail: UInt64(WorkerDescriptor.bundle))
        }
        guard let bundle = SandboxBundle(decoding: bytes) else {
            throw WorkerFailure(.launchMessage, errno: EBADMSG, detail: UInt64(WorkerDescriptor.bundle))
        }
        return bundle
    }

    /// Waits for "serve". Anything else is a failure.
    static func waitForServe() throws(WorkerFailure) -> ServeMessage {
        var bytes = [UInt8](repeating: 0, count: ServeMessage.longest + 1)
        let count: Int
        do {
            count = try call("read") { read(WorkerDescriptor.control, &bytes, bytes.count) }
        } catch {
            throw WorkerFailure(.controlMessage, errno: error.errno)
        }
        guard let message = ServeMessage(decoding: Array(bytes[..<count])) else {
            throw WorkerFailure(.controlMessage, errno: EBADMSG)
        }
        return message
    }

    /// The main thread's life once the worker serves. The broker has nothing more to say in this version of the protocol,
    /// so any message is a violation; silence, even a closed socket, is not: the device outlives the broker.
    ///
    /// Allocates nothing. read(2) goes on by itself when the process was stopped and continued. It returns at once when
    /// somebody shut the socket down; then the thread sleeps in a ring of its own where nothing can ever happen.
    package static func linger(_ idle: consuming Ring) -> Never {
        var byte: UInt8 = 0
        while true {
            let count = read(WorkerDescriptor.control, &byte, 1)
            if count > 0 { _exit(WorkerExit.protocolViolation) }
            if count < 0, errno == EINTR { continue }
            while true { _ = idle.submit(waitingFor: 1) }
        }
    }
}
