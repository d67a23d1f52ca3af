-- Parts of statements that several files use.

-- part: done
-- Entities whose passages are all embedded or failed, in every space, with the hash of the content that was cut. text is
-- false for a content of white space only, which has no text to embed.
done AS (
    SELECT p.space, p.entity_type, p.id, p.content_hash, p.metadata_hash, p.text_hash IS NOT NULL AS text
    FROM {schema}.passages AS p
    WHERE p.position = 0 AND NOT EXISTS (
        SELECT FROM {schema}.passages AS lacking
        WHERE lacking.space = p.space AND lacking.entity_type = p.entity_type AND lacking.id = p.id
            AND lacking.text_hash IS NOT NULL AND NOT EXISTS (
                SELECT FROM {schema}.embeddings AS v
                WHERE v.space = lacking.space AND v.text_hash = lacking.text_hash
            )
    )
)

-- part: failing
-- Entities with a text that the embedder rejected.
failing AS (
    SELECT DISTINCT p.space, p.entity_type, p.id
    FROM {schema}.passages AS p JOIN {schema}.embeddings AS v ON v.space = p.space AND v.text_hash = p.text_hash
    WHERE v.error IS NOT NULL
)
