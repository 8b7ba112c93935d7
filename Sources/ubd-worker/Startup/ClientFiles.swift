import Glibc
import SystemCalls
import WorkerProtocol

/// The client's files, taken from the parking socket.
package enum ClientFiles {
    /// Peeks duplicates of the parked files, which stay there for the next worker, and checks each one.
    package static func peek(_ launch: LaunchMessage) throws(WorkerFailure) -> [ClientFile] {
        let wanted = launch.descriptors
        guard wanted.upperBound > 0 else { return [] }
        let descriptors = try receive(maximum: wanted.upperBound)
        guard wanted.contains(descriptors.count) else {
            throw WorkerFailure(.fileCount, detail: UInt64(descriptors.count))
        }
        let first = WorkerDescriptor.firstFile
        guard descriptors == Array(first..<first + Int32(descriptors.count)) else {
            throw WorkerFailure(.peekFiles, errno: EBADF)
        }
        var files: [ClientFile] = []
        for (index, descriptor) in descriptors.enumerated() {
            files.append(try ClientFile(checking: descriptor, index: index, launch))
        }
        return files
    }

    private static func receive(maximum: Int) throws(WorkerFailure) -> [Int32] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 16, alignment: 8)
        defer { buffer.deallocate() }
        var again = true
        while true {
            do {
                return try receiveWithFiles(WorkerDescriptor.parking, into: buffer, maximum: maximum, peek: true).files
            } catch {
                // A client that closed its end with unread data leaves one error in front of the message.
                guard error.errno == ECONNRESET, again else {
                    throw WorkerFailure(.peekFiles, errno: error.errno)
                }
                again = false
            }
        }
    }
}
